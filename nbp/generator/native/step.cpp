// A call of the transformer on a CPU, from embeddings to normalised hidden states, and the head's product.
//
// All layers in one go of the threads, which wait for each other some six times a layer: woken for each operation, as
// PyTorch's are, they would wait longer than they compute. Built by setup.py for one type of numbers each, called by
// library.py. The residual stream, norms, softmax and sums are float32 with either type.
#include <omp.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <vector>

#include "products.h"

#ifndef NUMBER
#define NUMBER float
#endif

// All else is hidden: builds for several processors are in one process, and the linker would take one for another.
#define EXPORT extern "C" __attribute__((visibility("default")))

extern "C" {

// Pointers of a layer; weights are packed (products.h), the rest is float32.
struct Layer {
    const float *norm1_weight, *norm1_bias;
    const NUMBER* qkv; const float* qkv_bias;
    const NUMBER* proj; const float* proj_bias;
    const float *norm2_weight, *norm2_bias;
    const NUMBER* up; const float* up_bias;
    const NUMBER* down; const float* down_bias;
    // Of each clip and head, one behind the other: keys as `length` packed columns, with a head's channels as depths;
    // values as packed columns of channels, with `length` depths. Channels are filled up with zeros, to a multiple of
    // 16 in float32 and 32 in bfloat16; what is not written yet is zero as well.
    NUMBER *keys, *values;
};

struct Step {
    int clips, rows, start, length, width, heads, layers, threads;
    float* x;                   // (clips, rows, width): embeddings, then the result
    const uint8_t* mask;        // (clips or 1, rows, start + rows), or none
    int64_t mask_stride;        // between clips
    const float* turn;          // cosines and sines (2, rows, size / 2), or none
    const float *norm_weight, *norm_bias;
};
}

namespace nbp {
namespace {

using Number = NUMBER;
constexpr int TASK = 4, LARGE_TASK = 12;    // blocks of columns that a thread takes at a time; of many rows
constexpr int STAGES = 7;       // of a layer
constexpr int SPINS = 2000;     // before a thread that waits sleeps: 20 us of a Xeon

class Barrier {
public:
    void wait(int threads) {
        const int now = phase.load(std::memory_order_acquire);
        if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == threads) {
            arrived.store(0, std::memory_order_relaxed);
            phase.fetch_add(1, std::memory_order_release);
            phase.notify_all();
            return;
        }
        for (int i = 0; i < SPINS; i++) {
            if (phase.load(std::memory_order_acquire) != now) return;
            _mm_pause();
        }
        phase.wait(now, std::memory_order_acquire);
    }

private:
    std::atomic<int> arrived{0}, phase{0};
};

class Run {
public:
    Run(const Step& step, const Layer* layers)
        : step(step), layers(layers), rows(step.clips * step.rows), width(step.width), size(width / step.heads),
          keys(filled_up(step.start + step.rows, 32)), next(step.layers * STAGES + 1),
          normed(filled_up(rows, BLOCK) * width), attended(normed.size()), hidden(4 * normed.size()),
          projected(3 * normed.size()) {}

    // What every thread does.
    void work() {
        Products products;
        Scratch own(*this);
        int stage = 0;
        const auto into_stream = [this](const float* bias) {
            return [this, bias](const float* part, int r, int c, int n) {
                float* x = step.x + size_t(r) * width + c;
                for (int i = 0; i < n; i += LANES) store(x + i, load(x + i) + load(part + i) + load(bias + c + i));
            };
        };
        for (const Layer* l = layers; l < layers + step.layers; l++) {
            norm(stage++, l->norm1_weight, l->norm1_bias, normed.data(), own);
            linear(stage++, products, own, normed.data(), width, l->qkv, 3 * width,
                   [&](const float* part, int r, int c, int n) {
                float* to = projected.data() + size_t(r) * 3 * width + c;
                for (int i = 0; i < n; i += LANES) store(to + i, load(part + i) + load(l->qkv_bias + c + i));
            });
            each(stage++, step.clips * step.heads, [&](int task) {
                remember(task / step.heads, task % step.heads, *l, own);
                for (int first = 0; first < step.rows; first += BLOCK) attend(task, first, *l, products, own);
            });
            linear(stage++, products, own, attended.data(), width, l->proj, width, into_stream(l->proj_bias));
            norm(stage++, l->norm2_weight, l->norm2_bias, normed.data(), own);
            linear(stage++, products, own, normed.data(), width, l->up, 4 * width,
                   [&](float* part, int r, int c, int n) {
                for (int i = 0; i < n; i += LANES) store(part + i, gelu(load(part + i) + load(l->up_bias + c + i)));
                convert(part, hidden.data() + size_t(r) * 4 * width + c, n);
            });
            linear(stage++, products, own, hidden.data(), 4 * width, l->down, width, into_stream(l->down_bias));
        }
        norm(stage, step.norm_weight, step.norm_bias, step.x, own);
    }

private:
    // Buffers of one thread.
    struct Scratch {
        explicit Scratch(const Run& run)
            : row(std::max(run.width, filled_up(run.size, 32))), scores(size_t(BLOCK) * run.keys),
              out(BLOCK * filled_up(run.size, BLOCK)),
              piece(size_t(filled_up(run.rows, BLOCK)) * run.blocks_a_task() * BLOCK), low(row.size()),
              odds(scores.size()),
              queries(size_t(filled_up(run.step.rows, BLOCK)) * run.depth()) {}
        std::vector<float> row, scores, out, piece;
        std::vector<Number> low, odds, queries;
    };

    // Call f(0) to f(count - 1), each by the thread that comes first, and wait until all are done.
    template <class Function>
    void each(int stage, int count, Function f) {
        std::atomic<int>& task = next.at(stage);
        for (int i = task++; i < count; i = task++) f(i);
        barrier.wait(omp_get_num_threads());
    }

    template <class Out>
    void norm(int stage, const float* weight, const float* bias, Out* out, Scratch& own) {
        each(stage, rows, [&](int r) {
            layer_norm(step.x + size_t(r) * width, weight, bias, width, own.row.data(), out + size_t(r) * width);
        });
    }

    // Product of all rows; `after` takes each row of each piece of the result.
    template <class After>
    void linear(int stage, const Products& products, Scratch& own, const Number* a, int depth, const Number* packed,
                int columns, After after) {
        const int blocks = columns / BLOCK, most = blocks_a_task();
        each(stage, (blocks + most - 1) / most, [&](int task) {
            const int first = task * most, count = std::min(most, blocks - first), column = first * BLOCK;
            const Columns<Number> all{packed, size_t(depth) * BLOCK, depth, blocks};
            const int stride = most * BLOCK;
            products.multiply(a, rows, depth, all.from(first, count), own.piece.data(), stride);
            for (int r = 0; r < rows; r++) after(own.piece.data() + size_t(r) * stride, r, column, count * BLOCK);
        });
    }

    int blocks_a_task() const { return rows > MANY ? LARGE_TASK : TASK; }
    int depth() const { return filled_up(size, DEPTH<Number>); }

    Number* cached(Number* of_layer, int task) const {
        return of_layer + size_t(task) * step.length * filled_up(size, DEPTH<Number> > BLOCK ? DEPTH<Number> : BLOCK);
    }

    // Turn and scale the queries of a head, and write its keys and values into the cache.
    void remember(int clip, int head, const Layer& layer, Scratch& own) {
        const int task = clip * step.heads + head;
        Number *keys_of = cached(layer.keys, task), *values_of = cached(layer.values, task);
        std::fill(own.row.begin(), own.row.end(), 0.f);
        for (int i = 0; i < step.rows; i++) {
            const float* from = projected.data() + size_t(clip * step.rows + i) * 3 * width + head * size;
            const int position = step.start + i;
            turned(from, i, 1 / std::sqrt(float(size)), own);
            std::copy_n(own.low.data(), depth(), own.queries.data() + size_t(i) * depth());
            turned(from + width, i, 1, own);
            Number* key = keys_of + place<Number>(position, 0, depth());
            for (int j = 0; j < depth(); j += PAIR<Number>, key += PAIR<Number> * BLOCK)
                std::copy_n(&own.low[j], PAIR<Number>, key);
            std::copy_n(from + 2 * width, size, own.row.data());
            convert(own.row.data(), own.low.data(), filled_up(size, BLOCK));
            for (int j = 0; j < size; j += BLOCK) {
                Number* value = values_of + place<Number>(j, position, step.length);
                for (int c = 0; c < std::min(BLOCK, size - j); c++) value[c * PAIR<Number>] = own.low[j + c];
            }
        }
    }

    // Row i of a head's queries or keys in rotary positions (nbp/generator/rotary.py), times `scale`, into own.low.
    void turned(const float* from, int i, float scale, Scratch& own) {
        const int half = size / 2;
        for (int j = 0; j < size; j++) own.row[j] = from[j] * scale;
        if (step.turn)
            for (int j = 0; j < half; j++) {
                const float a = own.row[j], b = own.row[half + j];
                const float cosine = step.turn[i * half + j], sine = step.turn[(step.rows + i) * half + j];
                own.row[j] = a * cosine - b * sine;
                own.row[half + j] = a * sine + b * cosine;
            }
        convert(own.row.data(), own.low.data(), filled_up(size, BLOCK));
    }

    // Attention of 16 queries of a head, from row `first` on.
    void attend(int task, int first, const Layer& layer, const Products& products, Scratch& own) {
        const int clip = task / step.heads, head = task % step.heads, count = std::min(BLOCK, step.rows - first);
        const int keys = filled_up(last_seen(clip, first, count) + 1, 32);
        const Columns<Number> keys_of{cached(layer.keys, task), size_t(depth()) * BLOCK, depth(), keys / BLOCK};
        const Columns<Number> values_of{cached(layer.values, task), size_t(step.length) * BLOCK, keys,
                                        filled_up(size, BLOCK) / BLOCK};
        const Number* queries = own.queries.data() + size_t(first) * depth();
        products.multiply(queries, count, depth(), keys_of, own.scores.data(), keys);
        float totals[BLOCK], top;
        for (int r = 0; r < count; r++) {
            float* scores = own.scores.data() + size_t(r) * keys;
            hide(scores, clip, first + r, keys);
            totals[r] = exponentials(scores, keys, 1, top);
            convert(scores, own.odds.data() + size_t(r) * keys, keys);
        }
        const int stride = values_of.blocks * BLOCK;
        products.multiply(own.odds.data(), count, keys, values_of, own.out.data(), stride);
        for (int r = 0; r < count; r++) {
            const float* sums = own.out.data() + r * stride;
            for (int j = 0; j < stride; j += LANES) store(own.row.data() + j, load(sums + j) / totals[r]);
            convert(own.row.data(), own.low.data(), stride);
            const size_t row = size_t(clip * step.rows + first + r);
            std::copy_n(own.low.data(), size, attended.data() + row * width + head * size);
        }
    }

    const uint8_t* seen_by(int clip, int i) const {
        return step.mask + clip * step.mask_stride + size_t(i) * (step.start + step.rows);
    }

    // The last key that one of these rows sees: those behind it would only be multiplied by 0.
    int last_seen(int clip, int first, int count) const {
        int last = step.start + step.rows - 1;
        if (step.mask)
            while (last > 0 && !sees(clip, first, count, last)) last--;
        return last;
    }

    bool sees(int clip, int first, int count, int key) const {
        for (int r = 0; r < count; r++)
            if (seen_by(clip, first + r)[key]) return true;
        return false;
    }

    // Scores of keys that row i must not see, or that are none.
    void hide(float* scores, int clip, int i, int keys) const {
        const int end = std::min(keys, step.start + step.rows);
        const float hidden_score = -std::numeric_limits<float>::infinity();
        if (step.mask) {
            const uint8_t* seen = seen_by(clip, i);
            for (int k = 0; k < end; k++) scores[k] = seen[k] ? scores[k] : hidden_score;
        }
        std::fill(scores + end, scores + keys, hidden_score);
    }

    const Step& step;
    const Layer* layers;
    const int rows, width, size, keys;          // keys: up to a multiple of 32
    Barrier barrier;
    std::vector<std::atomic<int>> next;         // task of each stage
    std::vector<Number> normed, attended, hidden;
    std::vector<float> projected;
};

}  // namespace
}  // namespace nbp

EXPORT unsigned source() { return SOURCE; }

// Turn tiles on or off, for tests, or only ask (-1); returns whether they are used.
EXPORT int use_tiles(int wanted) {
    if (wanted >= 0) nbp::wanted = wanted;
    return nbp::tiles();
}

EXPORT void transform(const Step* step, const Layer* layers) {
    nbp::Run run(*step, layers);
#pragma omp parallel num_threads(step->threads)
    run.work();
}

// Product of x (rows, depth) with packed columns into out (rows up to a multiple of 16, columns).
EXPORT void multiply(const float* x, int rows, int depth, const NUMBER* packed, int columns, float* out, int threads) {
    std::vector<NUMBER> low(size_t(nbp::filled_up(rows, nbp::BLOCK)) * depth);
    nbp::convert(x, low.data(), rows * depth);
    const nbp::Columns<NUMBER> all{packed, size_t(depth) * nbp::BLOCK, depth, columns / nbp::BLOCK};
    const int tasks = (all.blocks + nbp::TASK - 1) / nbp::TASK;
    std::atomic<int> next{0};
#pragma omp parallel num_threads(threads)
    {
        nbp::Products products;
        for (int task = next++; task < tasks; task = next++) {
            const int first = task * nbp::TASK, count = std::min(nbp::TASK, all.blocks - first);
            products.multiply(low.data(), rows, depth, all.from(first, count), out + first * nbp::BLOCK, columns);
        }
    }
}
