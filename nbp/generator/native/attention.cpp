// Attention of training, forward and backward: each head of a clip by one thread, without a matrix of all scores.
//
// The mask comes as the spans of nbp/generator/masks.py: keys that no query of a tile sees cost nothing. Scores and sums
// are float32 whatever is multiplied. Backward makes the scores again, from the logarithms of forward's sums.
// Source: FlashAttention-2, arXiv 2307.08691.
#include <omp.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "products.h"

#ifndef NUMBER
#define NUMBER float
#endif
#define EXPORT extern "C" __attribute__((visibility("default")))

extern "C" {

// Queries first to last - 1 see none but the first `keys`, and of these what the mask (last - first, keys) says.
struct Span {
    int first, last, keys;
    const uint8_t* mask;
    int64_t stride;             // between the masks of clips
};

struct Attention {
    int clips, rows, heads, size, spans, threads;
    const Span* span;
    const NUMBER* projected;    // (clips, rows, 3, heads, size): queries, keys, values
    const float* turn;          // cosines and sines (2, rows, size / 2), or none
    NUMBER* out;                // (clips, rows, heads, size)
    float* sums;                // (clips, heads, rows, 2): largest score, logarithm of the sum of what is left
    const NUMBER* out_grad;     // as `out`
    NUMBER* projected_grad;     // as `projected`
};
}

namespace nbp {
namespace {

using Number = NUMBER;
constexpr int QUERIES = 64, KEYS = 256;     // of a tile
constexpr int AHEAD = 8;                    // rows that are fetched: each is on another page
constexpr float INFINITE = std::numeric_limits<float>::infinity();

enum Which { QUERY, KEY, VALUE };

// Two rows of 16 numbers as two depths of packed columns.
inline void interleave(const float* even, const float* odd, float* to) {
    for (int c = 0; c < BLOCK; c += LANES) {
        store(to + c, load(even + c));
        store(to + BLOCK + c, load(odd + c));
    }
}

#ifdef __AVX512BF16__
inline void interleave(const float* even, const float* odd, bfloat16* to) {
    const auto low = [](const float* from) {
        return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(from)));
    };
    _mm512_storeu_si512(to, _mm512_or_si512(low(even), _mm512_slli_epi32(low(odd), 16)));
}
#endif

// A head of a clip; its memory is used again by the next.
class Head {
public:
    void forward(const Attention& attention, int task, const Products& products) {
        begin(attention, task);
        for (int i = 0; i < filled; i += 2) {
            read_pair(QUERY, i, queries.data());
            read_pair(KEY, i, keys.data());
            read_pair(VALUE, i, nullptr);
            pack_pair(i, values.data());
        }
        pack_columns(keys.data(), key_columns.data());
        for (int first = 0; first < a->rows; first += QUERIES) attend(first, products);
    }

    void backward(const Attention& attention, int task, const Products& products) {
        begin(attention, task);
        for (auto* sums : {&key_sums, &value_sums}) sums->assign(size_t(depth) * filled, 0.f);
        for (int i = 0; i < filled; i += 2) {
            read_pair(QUERY, i, queries.data());
            pack_pair(i, query_rows.data());
            read_pair(KEY, i, keys.data());
            pack_pair(i, key_rows.data());
            read_pair(VALUE, i, values.data());
            read_pair_of_grad(i);
            pack_pair(i, grad_rows.data());
        }
        turn_over(query_rows.data(), query_depths.data());
        turn_over(grad_rows.data(), grad_depths.data());
        pack_columns(keys.data(), key_columns.data());
        pack_columns(values.data(), value_columns.data());
        for (int first = 0; first < a->rows; first += QUERIES) {
            const int count = keys_of(first);
            for (int key = 0; key < count; key += KEYS)
                differentiate(first, key, std::min(KEYS, count - key), products);
            for (int i = first; i < std::min(first + QUERIES, a->rows); i++)
                write(QUERY, i, query_sums.data() + size_t(i - first) * depth);
        }
        write_sums(KEY, key_sums);
        write_sums(VALUE, value_sums);
    }

private:
    void begin(const Attention& attention, int task) {
        a = &attention, clip = task / a->heads, head = task % a->heads;
        depth = filled_up(a->size, std::max(DEPTH<Number>, BLOCK)), filled = filled_up(a->rows, QUERIES);
        scale = 1 / std::sqrt(float(a->size));
        for (auto* buffer : {&queries, &keys, &values, &grads, &key_columns, &value_columns, &key_rows, &query_rows,
                             &grad_rows, &query_depths, &grad_depths})
            buffer->resize(size_t(filled) * depth);
        for (auto* buffer : {&even, &odd, &result}) buffer->assign(depth, 0.f);
        query_sums.resize(size_t(QUERIES) * depth), low.resize(depth), dots.assign(filled, 0.f);
        scores.resize(size_t(QUERIES) * std::max({filled, KEYS, depth})), changes.resize(size_t(QUERIES) * KEYS);
        odds.resize(scores.size()), low_changes.resize(changes.size()), change_columns.resize(changes.size());
        see();
    }

    // Which keys each query sees: the first `whole`, some of those up to `ends`.
    void see() {
        seen.assign(filled, nullptr), ends.assign(filled, 0), whole.assign(filled, 0);
        for (const Span* span = a->span; span < a->span + a->spans; span++)
            for (int i = span->first; i < span->last; i++) {
                ends[i] = whole[i] = span->keys;
                if (!span->mask) continue;
                seen[i] = span->mask + clip * span->stride + size_t(i - span->first) * span->keys;
                const void *last = memrchr(seen[i], 1, span->keys), *hidden = std::memchr(seen[i], 0, span->keys);
                ends[i] = last ? static_cast<const uint8_t*>(last) - seen[i] + 1 : 0;
                if (hidden) whole[i] = static_cast<const uint8_t*>(hidden) - seen[i];
            }
    }

    // How many keys the queries of a tile see, filled up.
    int keys_of(int first) const {
        return filled_up(std::max(1, *std::max_element(ends.begin() + first, ends.begin() + first + QUERIES)), QUERIES);
    }

    float* sums_of(int i) const { return a->sums + ((size_t(clip) * a->heads + head) * a->rows + i) * 2; }

    size_t place_of(Which which, int i) const {
        return ((size_t(clip) * a->rows + i) * 3 + which) * a->heads * a->size + head * a->size;
    }

    size_t place_of_out(int i) const { return ((size_t(clip) * a->rows + i) * a->heads + head) * a->size; }

    // Rows i and i + 1 into `even` and `odd`, and as rows of `to`; zeros behind the last.
    void read_pair(Which which, int i, Number* to) {
        for (int k = 0; k < 2; k++) {
            float* row = (k ? odd : even).data();
            if (i + k < a->rows) {
                const Number* from = a->projected + place_of(which, i + k);
                _mm_prefetch(reinterpret_cast<const char*>(from + size_t(AHEAD) * 3 * a->heads * a->size), _MM_HINT_T0);
                widen(from, row, a->size);
                if (a->turn && which != VALUE) turn(row, i + k, 1);
            } else {
                std::fill_n(row, depth, 0.f);
            }
            if (to) convert(row, to + size_t(i + k) * depth, depth);
        }
    }

    // The same of the result's gradient; and its product with the result.
    void read_pair_of_grad(int i) {
        for (int k = 0; k < 2; k++) {
            float* row = (k ? odd : even).data();
            if (i + k < a->rows) {
                widen(a->out_grad + place_of_out(i + k), row, a->size);
                widen(a->out + place_of_out(i + k), result.data(), a->size);
                Vector sum{};
                for (int j = 0; j < depth; j += LANES) sum += load(row + j) * load(result.data() + j);
                dots[i + k] = sum_of(sum);
            } else {
                std::fill_n(row, depth, 0.f);
            }
            convert(row, grads.data() + size_t(i + k) * depth, depth);
        }
    }

    // Into rotary positions (nbp/generator/rotary.py), or with `sign` -1 back.
    void turn(float* row, int i, float sign) const {
        const int half = a->size / 2;
        for (int j = 0; j < half; j++) {
            const float cosine = a->turn[size_t(i) * half + j];
            const float sine = sign * a->turn[size_t(a->rows + i) * half + j];
            const float x = row[j], y = row[half + j];
            row[j] = x * cosine - y * sine;
            row[half + j] = x * sine + y * cosine;
        }
    }

    // `even` and `odd` as depths i and i + 1 of packed columns, one for each channel.
    void pack_pair(int i, Number* to) const {
        for (int j = 0; j < depth; j += BLOCK)
            interleave(even.data() + j, odd.data() + j, to + place<Number>(j, i, filled));
    }

    // What `pack_pair` has packed as rows, one for each channel; 32 bits at a time, as two depths are side by side.
    void turn_over(const Number* packed, Number* to) const {
        const int row = filled / PAIR<Number>;
        for (int j = 0; j < depth; j += BLOCK)
            transpose(in_32_bits(packed + size_t(j) * filled), BLOCK, in_32_bits(to + size_t(j) * filled), row, row, BLOCK);
    }

    // Rows as packed columns.
    void pack_columns(const Number* rows, Number* to) const {
        const int row = depth / PAIR<Number>;
        for (int i = 0; i < filled; i += BLOCK)
            transpose(in_32_bits(rows + size_t(i) * depth), row, in_32_bits(to + size_t(i) * depth), BLOCK, BLOCK, row);
    }

    static const float* in_32_bits(const Number* numbers) { return reinterpret_cast<const float*>(numbers); }
    static float* in_32_bits(Number* numbers) { return reinterpret_cast<float*>(numbers); }

    Columns<Number> columns_of(const std::vector<Number>& packed, int key, int count) const {
        const Columns<Number> all{packed.data(), size_t(depth) * BLOCK, depth, filled / BLOCK};
        return all.from(key / BLOCK, count / BLOCK);
    }

    Columns<Number> depths_of(const std::vector<Number>& packed, int key, int count) const {
        return {packed.data() + size_t(key) * BLOCK, size_t(filled) * BLOCK, count, depth / BLOCK};
    }

    // Of the scores of query i with `count` keys those that it must not see.
    void hide(float* scores, int i, int key, int count) const {
        for (int k = std::max(0, whole[i] - key); k < count; k++)
            if (key + k >= ends[i] || !seen[i] || !seen[i][key + k]) scores[k] = -INFINITE;
    }

    void attend(int first, const Products& products) {
        const int number = std::min(QUERIES, a->rows - first), count = keys_of(first);
        products.multiply(queries.data() + size_t(first) * depth, number, depth, columns_of(key_columns, 0, count),
                          scores.data(), count);
        float totals[QUERIES];
        for (int r = 0; r < number; r++) {
            float *row = scores.data() + size_t(r) * count, *sums = sums_of(first + r);
            hide(row, first + r, 0, count);
            totals[r] = exponentials(row, count, scale, sums[0]);
            sums[1] = std::log(totals[r]);
            if (ends[first + r] == 0) {         // it sees nothing, and gives nothing
                std::fill_n(row, count, 0.f);
                totals[r] = 1, sums[0] = 0, sums[1] = INFINITE;
            }
            convert(row, odds.data() + size_t(r) * count, count);
        }
        products.multiply(odds.data(), number, count, depths_of(values, 0, count), query_sums.data(), depth);
        for (int r = 0; r < number; r++) {
            float* row = query_sums.data() + size_t(r) * depth;
            for (int j = 0; j < depth; j += LANES) store(row + j, load(row + j) / totals[r]);
            convert(row, low.data(), depth);
            std::copy_n(low.data(), a->size, a->out + place_of_out(first + r));
        }
    }

    // What a tile of queries and keys adds to the gradients of both and of the values.
    void differentiate(int first, int key, int count, const Products& products) {
        const size_t query = size_t(first) * depth;
        products.multiply(queries.data() + query, QUERIES, depth, columns_of(key_columns, key, count), scores.data(),
                          count);
        products.multiply(grads.data() + query, QUERIES, depth, columns_of(value_columns, key, count), changes.data(),
                          count);
        for (int r = 0; r < QUERIES; r += 2) differentiate_softmax(first + r, key, count, r);
        products.multiply(low_changes.data(), QUERIES, count, depths_of(key_rows, key, count), query_sums.data(), depth,
                          key > 0);
        const Columns<Number> changed{change_columns.data(), size_t(QUERIES) * BLOCK, QUERIES, count / BLOCK};
        const Columns<Number> likely{odds.data(), size_t(QUERIES) * BLOCK, QUERIES, count / BLOCK};
        products.multiply(query_depths.data() + first, depth, filled, changed, key_sums.data() + key, filled, true);
        products.multiply(grad_depths.data() + first, depth, filled, likely, value_sums.data() + key, filled, true);
    }

    // Of queries i and i + 1, rows r and r + 1 of `scores` and `changes`, the probabilities as packed columns and the
    // gradients of the scores as rows and as packed columns.
    void differentiate_softmax(int i, int key, int count, int r) {
        float top[2], sum[2], likely[2][BLOCK], changed[2][BLOCK];
        for (int s = 0; s < 2; s++) {
            hide(scores.data() + size_t(r + s) * count, i + s, key, count);
            top[s] = i + s < a->rows ? sums_of(i + s)[0] : 0, sum[s] = i + s < a->rows ? sums_of(i + s)[1] : INFINITE;
        }
        for (int k = 0; k < count; k += BLOCK) {
            for (int s = 0; s < 2; s++) {
                const size_t at = size_t(r + s) * count + k;
                for (int c = 0; c < BLOCK; c += LANES) {
                    const Vector odds = exponential((load(scores.data() + at + c) - top[s]) * scale - sum[s]);
                    store(likely[s] + c, odds);
                    store(changed[s] + c, odds * (load(changes.data() + at + c) - dots[i + s]) * scale);
                }
                convert(changed[s], low_changes.data() + at, BLOCK);
            }
            interleave(likely[0], likely[1], odds.data() + place<Number>(k, r, QUERIES));
            interleave(changed[0], changed[1], change_columns.data() + place<Number>(k, r, QUERIES));
        }
    }

    void write(Which which, int i, float* row) {
        if (a->turn && which != VALUE) turn(row, i, -1);
        convert(row, low.data(), depth);
        std::copy_n(low.data(), a->size, a->projected_grad + place_of(which, i));
    }

    void write_sums(Which which, const std::vector<float>& sums) {
        std::vector<float>& piece = scores;         // (BLOCK, depth)
        for (int first = 0; first < a->rows; first += BLOCK) {
            transpose(sums.data() + first, filled, piece.data(), depth, depth, BLOCK);
            for (int r = 0; r < std::min(BLOCK, a->rows - first); r++)
                write(which, first + r, piece.data() + size_t(r) * depth);
        }
    }

    const Attention* a = nullptr;
    int clip = 0, head = 0, depth = 0, filled = 0;      // channels and rows, filled up
    float scale = 1;
    std::vector<Number> queries, keys, values, grads;   // rows, but for forward's values, which are packed
    std::vector<Number> key_columns, value_columns, key_rows, query_rows, grad_rows, query_depths, grad_depths;
    std::vector<Number> odds, low_changes, change_columns, low;
    std::vector<float> even, odd, result, dots, scores, changes, query_sums, key_sums, value_sums;
    std::vector<const uint8_t*> seen;
    std::vector<int> ends, whole;
};

template <class Function>
void each(const Attention& attention, Function function) {
#pragma omp parallel num_threads(attention.threads)
    {
        static thread_local Head head;
        const Products products;
#pragma omp for schedule(dynamic)
        for (int task = 0; task < attention.clips * attention.heads; task++) function(head, task, products);
    }
}

}  // namespace
}  // namespace nbp

EXPORT void attend(const Attention* attention) {
    nbp::each(*attention, [&](nbp::Head& head, int task, const nbp::Products& products) {
        head.forward(*attention, task, products);
    });
}

EXPORT void attend_backward(const Attention* attention) {
    nbp::each(*attention, [&](nbp::Head& head, int task, const nbp::Products& products) {
        head.backward(*attention, task, products);
    });
}
