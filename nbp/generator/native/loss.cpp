// Cross-entropy of rows of logits and, in their place, its gradient: a row is read from memory and written there once.
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "vectors.h"

#ifndef NUMBER
#define NUMBER float
#endif
#define EXPORT extern "C" __attribute__((visibility("default")))

extern "C" {

struct Loss {
    int rows, columns, threads;
    NUMBER* logits;             // (rows, columns)
    const int64_t* target;      // (rows,)
    float share;                // of a row in the gradient; 0: the logits stay
    float* losses;              // (rows,)
};
}

namespace nbp {
namespace {

// The row as float32, filled up with what has no odds.
void read_row(const NUMBER* from, int count, std::vector<float>& row) {
    row.resize(filled_up(count, BLOCK));
    widen(from, row.data(), count);
    std::fill(row.begin() + count, row.end(), -INFINITY);
}

void write_row(const std::vector<float>& row, NUMBER* to, int count) {
    const int whole = count / BLOCK * BLOCK;
    convert(row.data(), to, whole);
    NUMBER rest[BLOCK];
    convert(row.data() + whole, rest, count > whole ? BLOCK : 0);
    std::copy_n(rest, count - whole, to + whole);
}

void differentiate(const Loss& loss, int i, std::vector<float>& row) {
    NUMBER* logits = loss.logits + size_t(i) * loss.columns;
    const size_t target = loss.target[i];
    read_row(logits, loss.columns, row);
    const float wanted = row[target];
    float top;
    const float sum = exponentials(row.data(), row.size(), 1, top);
    loss.losses[i] = top - wanted + std::log(sum);
    if (loss.share == 0) return;
    const float scale = loss.share / sum;
    for (size_t k = 0; k < row.size(); k += LANES) store(row.data() + k, load(row.data() + k) * scale);
    row[target] -= loss.share;
    write_row(row, logits, loss.columns);
}

}  // namespace
}  // namespace nbp

EXPORT void differentiate_loss(const Loss* loss) {
#pragma omp parallel num_threads(loss->threads)
    {
        std::vector<float> row;
#pragma omp for schedule(static)
        for (int i = 0; i < loss->rows; i++) nbp::differentiate(*loss, i, row);
    }
}
