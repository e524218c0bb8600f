// Which id each position draws: of the best by top-k and of these in the nucleus by top-p, the first to arrive.
//
// Nothing is sorted: the last value that stays lies in a bracket around its place in a sample, and a pass over the row
// counts what is above the bracket and keeps what is inside. nbp/generator/sampling.py says what is drawn.
// Source: brackets from samples, doi.org/10.1145/360680.360691 (Floyd and Rivest).
#include <omp.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <vector>

#include "vectors.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace nbp {
namespace {

constexpr float INFINITE = std::numeric_limits<float>::infinity();
constexpr int SAMPLE = 64, MARGIN = 9;      // values, and how many on either side of the place are in the bracket
constexpr float EARLY = 0x1p-8f;            // random numbers below it win mostly
constexpr int CHUNK = 16 * LANES;           // values whose weights are added in float32
constexpr int ROWS_A_THREAD = 4;            // at least: waking a thread takes as long as one

struct Bracket {
    float low, high;
};

enum Side { INSIDE, ABOVE, BELOW };     // of a bracket

// How many values are on the side that is sought, and what these weigh and those above.
struct Found {
    int inside = 0;
    double weight_above = 0, weight_inside = 0;
};

// The last value that stays, and what those above it weigh. NaN where all of a row stay.
struct Edge {
    float value = std::numeric_limits<float>::quiet_NaN();
    double weight = 0;
};

struct Once {
    Vector operator()(Vector) const { return all(1.f); }
};

struct Probability {        // but for a factor
    float top;
    Vector operator()(Vector logits) const { return exponential(logits - top); }
};

// Copy what is on a side of a bracket to `kept`, which may be written up to a vector more. NaN is nowhere.
template <Side side = INSIDE, class Weight>
Found pass(const float* row, int count, Bracket bracket, Weight weight, float* kept) {
    Found found;
    for (int first = 0; first < count; first += CHUNK) {
        Vector above{}, inside{};
        for (int i = first; i < std::min(first + CHUNK, count); i += LANES) {
            const Vector values = load_some(row + i, count - i), weights = weight(values);
            const Whole over = values > bracket.high, reached = values >= bracket.low;
            const Whole higher = side == INSIDE ? over : side == ABOVE ? Whole{} : reached;
            const Whole within = side == INSIDE ? reached & (values <= bracket.high)
                               : side == ABOVE ? over : values < bracket.low;
            above += higher ? weights : Vector{};
            inside += within ? weights : Vector{};
            found.inside += compress(values, bits_of(within), kept + found.inside);
        }
        found.weight_above += sum_of(above);
        found.weight_inside += sum_of(inside);
    }
    return found;
}

// What a thread needs for a row.
class Row {
public:
    // The first to arrive of those that stay; 0 where nothing is a number.
    int64_t draw(const float* logits, const float* numbers, int size, int top_k, float top_p) {
        for (auto* buffer : {&best, &inside, &spare}) buffer->resize(std::max(buffer->size(), size_t(size + LANES)));
        Edge edge;
        if (top_k < size) edge = last(logits, size, size, top_k - 0.5, Once());
        const float low = edge.value == edge.value ? edge.value : -INFINITE;
        const int count = pass(logits, size, {low, INFINITE}, Once(), best.data()).inside;
        const Probability weight{largest(best.data(), count)};
        int64_t tied = size;                // how many of those at the edge stay
        if (top_p < 1) {
            const double total = pass(best.data(), count, {-INFINITE, INFINITE}, weight, spare.data()).weight_inside;
            const Edge full = last(best.data(), count, total, top_p * total, weight);
            if (full.value >= low) {
                edge = full;
                tied = 1 + int64_t(std::max(0., (top_p * total - full.weight) / weight(all(full.value))[0]));
            }
        }
        return first_arrival(logits, numbers, size, edge.value == edge.value ? edge.value : -INFINITE, tied,
                             weight.top);
    }

private:
    // The highest value that weighs more than `target` with all above it; `total`: what all weigh.
    template <class Weight>
    Edge last(const float* row, int count, double total, double target, Weight weight) {
        Edge edge;
        for (int margin = MARGIN; count > 0;) {
            if (count <= SAMPLE) margin = 0;
            const Bracket bracket = guess(row, count, (target - edge.weight) / total, margin, weight);
            Found found = pass(row, count, bracket, weight, inside.data());
            if (edge.weight + found.weight_above > target) {
                found = pass<ABOVE>(row, count, bracket, weight, inside.data());
            } else if (edge.weight + found.weight_above + found.weight_inside <= target) {
                found = pass<BELOW>(row, count, bracket, weight, inside.data());
            } else if (bracket.low == bracket.high) {
                return {bracket.low, edge.weight + found.weight_above};
            }
            edge.weight += found.weight_above;
            margin = found.inside > count / 2 ? 0 : MARGIN;     // many are equal, or in an order: halves get on
            count = found.inside, total = found.weight_inside;
            std::swap(inside, spare);
            row = spare.data();
        }
        return {};
    }

    // Around the place with a share of the weight above it, by a sample. With a margin of 0 a single value: that of the
    // place itself where the sample is all there is, else the median.
    template <class Weight>
    Bracket guess(const float* row, int count, double share, int margin, Weight weight) {
        const int number = std::min(count, SAMPLE);
        alignas(sizeof(Vector)) float sample[SAMPLE], weights[SAMPLE];
        for (int i = 0; i < number; i++) {
            const float value = row[int64_t(i) * count / number];
            sample[i] = value == value ? value : -INFINITE;
        }
        std::fill(sample + number, sample + SAMPLE, -INFINITE);
        std::sort(sample, sample + number, std::greater<float>());
        double total = 0, sum = 0;
        for (int i = 0; i < SAMPLE; i += LANES) store(weights + i, weight(load(sample + i)));
        for (int i = 0; i < number; i++) total += weights[i];
        int place = 0;
        while (place < number - 1 && !((sum += weights[place]) >= share * total)) place++;
        if (margin == 0 && count > SAMPLE) place = number / 2;
        if (margin == 0) return {sample[place], sample[place]};
        return {place + margin < number ? sample[place + margin] : -INFINITE,
                place >= margin ? sample[place - margin] : INFINITE};
    }

    static float largest(const float* row, int count) {
        Vector largest = all(-INFINITE);
        for (int i = 0; i < count; i += LANES) {
            const Vector here = load_some(row + i, count - i);
            largest = here > largest ? here : largest;
        }
        return largest_of(largest);
    }

    // Few random numbers are small, and these mostly win: others are looked at where they still could.
    static int64_t first_arrival(const float* logits, const float* numbers, int size, float edge, int64_t tied,
                                 float top) {
        const int end = end_of_tied(logits, size, edge, tied);
        int64_t id = 0;
        double best = -INFINITE;
        for (const float limit : {EARLY, 0x1p-4f, 1.f}) {
            for (int i = 0; i < size; i += LANES) {
                const Vector number = load_some(numbers + i, size - i), logit = load_some(logits + i, size - i);
                Whole chosen = (number < limit) & (logit >= edge);
                if (limit > EARLY && bits_of(chosen)) {         // a later one must still be able to win
                    const Vector ahead = logit - std::nextafter(float(best), -INFINITE);
                    chosen &= number <= exponential(ahead < 0.f ? ahead : Vector{}) * 1.001f;
                }
                for (unsigned bits = bits_of(chosen); bits; bits &= bits - 1) {
                    const int here = i + __builtin_ctz(bits);
                    if (logits[here] == edge && here >= end) continue;
                    const double time = std::max(-std::log1p(-double(numbers[here])), 0x1p-33);
                    const double score = logits[here] - std::log(time);
                    if (score > best) best = score, id = here;
                }
            }
            if (best > top - std::log(limit)) break;        // the time is at least as long as the number
        }
        return id;
    }

    // Behind the last of those tied at the edge that stay: the first ones do.
    static int end_of_tied(const float* logits, int size, float edge, int64_t tied) {
        for (int i = 0; i < size && tied < size; i += LANES) {
            unsigned bits = bits_of(load_some(logits + i, size - i) == edge);
            if (__builtin_popcount(bits) < tied) {
                tied -= __builtin_popcount(bits);
                continue;
            }
            while (--tied > 0) bits &= bits - 1;
            return i + __builtin_ctz(bits) + 1;
        }
        return size;
    }

    std::vector<float> best, inside, spare;
};

}  // namespace
}  // namespace nbp

// Ids of rows of logits and of random numbers in [0, 1), both (rows, size).
EXPORT void draw(const float* logits, const float* numbers, int rows, int size, int top_k, float top_p, int threads,
                 int64_t* ids) {
#pragma omp parallel for schedule(dynamic) num_threads(std::clamp(rows / nbp::ROWS_A_THREAD, 1, threads))
    for (int r = 0; r < rows; r++) {
        static thread_local nbp::Row row;       // its memory is used again by the next step
        ids[r] = row.draw(logits + size_t(r) * size, numbers + size_t(r) * size, size, top_k, top_p);
    }
}

// Fill `numbers` with what numpy's SFC64 gives from this state: the lower half of each 64 bits first, as numbers in
// [0, 1). Source: Chris Doty-Humphrey's sfc64, numpy.org/doc/stable/reference/random/bit_generators/sfc64.html.
EXPORT void fill(const uint64_t* state, int64_t count, float factor, float* numbers) {
    uint64_t a = state[0], b = state[1], c = state[2], round = state[3];
    uint32_t bits[1024];
    for (int64_t first = 0; first < count; first += 1024) {
        const int number = int(std::min<int64_t>(1024, count - first));
        for (int i = 0; i < number; i += 2) {
            const uint64_t sum = a + b + round++;
            a = b ^ b >> 11;
            b = c + (c << 3);
            c = (c << 24 | c >> 40) + sum;
            std::memcpy(bits + i, &sum, sizeof sum);
        }
        for (int i = 0; i < number; i++) numbers[first + i] = float(bits[i]) * factor;
    }
}
