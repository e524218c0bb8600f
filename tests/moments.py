"""A feature network for tests that need no weights."""

import torch


class Moments(torch.nn.Module):
    """A network in milliseconds: means and deviations over coarse cells, 24 features."""

    def forward(self, video):
        cells = torch.nn.functional.adaptive_avg_pool3d(video, (2, 2, 1))
        return torch.cat([cells.flatten(1), (cells ** 2).flatten(1)], 1)
