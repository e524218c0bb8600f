// Products of rows with packed weights, (rows, depth) x (columns, depth) -> (rows, columns) in float32.
//
// Packed: blocks of 16 columns, in each of them depth after depth, of bfloat16 two depths side by side: what a vector
// instruction reads at once, and 32 depths of a block are what AMX calls a tile. A row's sums are taken in the order of
// their depths whatever the other rows are, so that a clip does not depend on its batch.
#pragma once

#include "vectors.h"

#include <algorithm>
#include <cstddef>

#ifdef __AVX512BF16__
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace nbp {

#ifdef __AVX512F__
constexpr int ROWS = 6, GROUP = 4;      // of a piece of the result that registers hold: rows, blocks of columns
#else
constexpr int ROWS = 3, GROUP = 2;
#endif
constexpr int PART = 96;                // depths of a group of columns that stay in the first cache
constexpr int MANY = 96;                // rows that stay in the second one

// Where column n of depth k is, of `depth` in all.
template <class Number>
inline size_t place(int n, int k, int depth) {
    return size_t(n / BLOCK) * BLOCK * depth + k / PAIR<Number> * PAIR<Number> * BLOCK + n % BLOCK * PAIR<Number>
        + k % PAIR<Number>;
}

inline void multiply_add(Vector& sum, const float* number, Vector columns) { sum += *number * columns; }

#ifdef __AVX512BF16__
inline void multiply_add(Vector& sum, const bfloat16* pair, Vector columns) {
    int both;
    std::memcpy(&both, pair, sizeof both);
    sum = (Vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(both), (__m512bh)columns);
}
#endif

// Packed columns: from where on, how far apart blocks are in memory, and how many depths of them count.
template <class Number>
struct Columns {
    const Number* start;
    size_t block;
    int depth, blocks;

    Columns from(int first, int count) const { return {start + first * block, block, depth, count}; }
};

// Depths first to last - 1 of R rows and G blocks, added to what is there or not. Meanwhile fetches as many depths of up to
// two blocks, of those that begin at `ahead`; where it points may be past the end.
template <class Number, int R, int G>
inline void multiply_piece(const Number* a, int stride, Columns<Number> columns, int first, int last, float* out,
                           int out_stride, bool add, const Number* ahead, int fetched) {
    constexpr int VECTORS = BLOCK / LANES;
    Vector sums[R][G * VECTORS] = {};
    if (add)
        for (int r = 0; r < R; r++)
            for (int g = 0; g < G * VECTORS; g++) sums[r][g] = load(out + size_t(r) * out_stride + g * LANES);
    for (int k = first; k < last; k += PAIR<Number>) {
        const size_t depth = size_t(k) * BLOCK;
        const Number* here = columns.start + depth;
        if (fetched > 0) _mm_prefetch(reinterpret_cast<const char*>(ahead + depth), _MM_HINT_T1);
        if (fetched > 1) _mm_prefetch(reinterpret_cast<const char*>(ahead + depth + columns.block), _MM_HINT_T1);
        Vector read[G * VECTORS];
#pragma GCC unroll 8
        for (int g = 0; g < G * VECTORS; g++)
            read[g] = load(reinterpret_cast<const float*>(here + g / VECTORS * columns.block) + g % VECTORS * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 8
            for (int g = 0; g < G * VECTORS; g++) multiply_add(sums[r][g], a + size_t(r) * stride + k, read[g]);
    }
    for (int r = 0; r < R; r++)
        for (int g = 0; g < G * VECTORS; g++) store(out + size_t(r) * out_stride + g * LANES, sums[r][g]);
}

template <class Number, int G, int R = ROWS>
void multiply_rows(const Number* a, int rows, int stride, Columns<Number> columns, int first, int last, float* out,
                   int out_stride, bool add, const Number* ahead, int left_to_fetch) {
    const int fetched = rows < G * R ? 2 : 1;       // blocks by each piece: the work is spread where rows are many
    for (int r = 0; r + R <= rows; r += R) {
        multiply_piece<Number, R, G>(a + size_t(r) * stride, stride, columns, first, last, out + size_t(r) * out_stride,
                                     out_stride, add, ahead, std::min(fetched, left_to_fetch));
        ahead += fetched * columns.block;
        left_to_fetch -= std::min(fetched, left_to_fetch);
    }
    if constexpr (R > 1)
        if (const int left = rows % R)
            multiply_rows<Number, G, R - 1>(a + size_t(rows - left) * stride, left, stride, columns, first, last,
                                            out + size_t(rows - left) * out_stride, out_stride, add, ahead,
                                            left_to_fetch);
}

// All rows pass a part of the depths before the next part, which is fetched meanwhile: otherwise the processor would
// wait for memory and then memory for the processor.
template <class Number, int G>
void multiply_group(const Number* a, int rows, int stride, Columns<Number> columns, float* out, int out_stride,
                    bool add) {
    for (int k = 0; k < columns.depth; k += PART) {
        const bool more = k + PART < columns.depth;
        multiply_rows<Number, G>(a, rows, stride, columns, k, std::min(k + PART, columns.depth), out, out_stride,
                                 add || k > 0, columns.start + size_t(PART) * BLOCK, more ? G : 0);   // `ahead` by a part
    }
}

#ifdef __AVX512BF16__
inline bool wanted = true;      // tests turn tiles off

#define WITH_TILES __attribute__((target("amx-tile,amx-bf16")))

// Whether the processor has AMX and the kernel lets this process use it (docs.kernel.org/arch/x86/xstate.html).
inline bool tiles() {
    static const bool allowed = __builtin_cpu_supports("amx-bf16") && syscall(SYS_arch_prctl, 0x1023, 18) == 0;
    return allowed && wanted;
}

WITH_TILES inline void begin_tiles() {
    struct alignas(64) { uint8_t palette, start, none[14]; uint16_t row_bytes[16]; uint8_t rows[16]; } shape{};
    shape.palette = 1;
    for (int i = 0; i < 8; i++) shape.row_bytes[i] = 64, shape.rows[i] = 16;
    asm volatile("" : : "r"(&shape) : "memory");        // GCC thinks that 8 bytes of it are read
    _tile_loadconfig(&shape);
}

WITH_TILES inline void end_tiles() { _tile_release(); }

// 16 rows and up to 4 blocks of columns; tiles 0 to 3 are the sums. Tiles are named in the code, not by a variable.
WITH_TILES inline void multiply_tiles(const bfloat16* a, int stride, Columns<bfloat16> columns, float* out,
                                      int out_stride, bool add) {
    const bfloat16* b = columns.start;
    const size_t next = columns.block;
    const int row = stride * 2, out_row = out_stride * 4, blocks = columns.blocks;
    if (add) {
        _tile_loadd(0, out, out_row);
        if (blocks > 1) _tile_loadd(1, out + BLOCK, out_row);
        if (blocks > 2) _tile_loadd(2, out + 2 * BLOCK, out_row);
        if (blocks > 3) _tile_loadd(3, out + 3 * BLOCK, out_row);
    } else {
        _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
    }
    for (int k = 0; k < columns.depth; k += 32, b += 32 * BLOCK) {
        _tile_loadd(4, a + k, row);
        _tile_loadd(5, b, 64); _tile_dpbf16ps(0, 4, 5);
        if (blocks > 1) { _tile_loadd(6, b + next, 64); _tile_dpbf16ps(1, 4, 6); }
        if (blocks > 2) { _tile_loadd(7, b + 2 * next, 64); _tile_dpbf16ps(2, 4, 7); }
        if (blocks > 3) { _tile_loadd(5, b + 3 * next, 64); _tile_dpbf16ps(3, 4, 5); }
    }
    _tile_stored(0, out, out_row);
    if (blocks > 1) _tile_stored(1, out + BLOCK, out_row);
    if (blocks > 2) _tile_stored(2, out + 2 * BLOCK, out_row);
    if (blocks > 3) _tile_stored(3, out + 3 * BLOCK, out_row);
}
// 32 rows and 2 blocks: as many sums, but what is loaded is multiplied twice.
WITH_TILES inline void multiply_square(const bfloat16* a, int stride, Columns<bfloat16> columns, float* out,
                                       int out_stride, bool add) {
    const bfloat16 *b = columns.start, *lower = a + size_t(16) * stride;
    float* lower_out = out + size_t(16) * out_stride;
    const size_t next = columns.block;
    const int row = stride * 2, out_row = out_stride * 4;
    if (add) {
        _tile_loadd(0, out, out_row); _tile_loadd(1, out + BLOCK, out_row);
        _tile_loadd(2, lower_out, out_row); _tile_loadd(3, lower_out + BLOCK, out_row);
    } else {
        _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
    }
    for (int k = 0; k < columns.depth; k += 32, b += 32 * BLOCK) {
        _tile_loadd(6, b, 64); _tile_loadd(4, a + k, row); _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, b + next, 64); _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, lower + k, row); _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, out, out_row); _tile_stored(1, out + BLOCK, out_row);
    _tile_stored(2, lower_out, out_row); _tile_stored(3, lower_out + BLOCK, out_row);
}

// A group of blocks, of up to MANY rows.
inline void multiply_by_tiles(const bfloat16* a, int rows, int stride, Columns<bfloat16> columns, float* out,
                              int out_stride, bool add) {
    for (int r = 0; r < rows; r += 32) {
        const bfloat16* here = a + size_t(r) * stride;
        float* sums = out + size_t(r) * out_stride;
        const int squares = rows - r > 16 ? columns.blocks / 2 * 2 : 0;
        for (int i = 0; i < squares; i += 2)
            multiply_square(here, stride, columns.from(i, 2), sums + i * BLOCK, out_stride, add);
        if (squares == columns.blocks) continue;
        const Columns<bfloat16> rest = columns.from(squares, columns.blocks - squares);
        multiply_tiles(here, stride, rest, sums + squares * BLOCK, out_stride, add);
        if (rows - r > 16)
            multiply_tiles(here + size_t(16) * stride, stride, rest, sums + size_t(16) * out_stride + squares * BLOCK,
                           out_stride, add);
    }
}
#else
inline bool wanted = false;
inline bool tiles() { return false; }
inline void begin_tiles() {}
inline void end_tiles() {}
#endif

// A thread's turn at products.
class Products {
public:
    Products() { if (tiles()) begin_tiles(); }
    ~Products() { if (tiles()) end_tiles(); }

    // `a` and `out` have rows up to a multiple of BLOCK, whose contents mean nothing. With `add` to what is in `out`.
    template <class Number>
    void multiply(const Number* a, int rows, int stride, Columns<Number> columns, float* out, int out_stride,
                  bool add = false) const {
        for (int r = 0; r < rows; r += MANY)
            multiply_some(a + size_t(r) * stride, std::min(MANY, rows - r), stride, columns,
                          out + size_t(r) * out_stride, out_stride, add);
    }

private:
    template <class Number>
    void multiply_some(const Number* a, int rows, int stride, Columns<Number> columns, float* out,
                       int out_stride, bool add) const {
        for (int g = 0; g < columns.blocks; g += GROUP) {
            const int count = std::min(GROUP, columns.blocks - g);
            const Columns<Number> part = columns.from(g, count);
#ifdef __AVX512BF16__
            if constexpr (PAIR<Number> == 2)
                if (tiles()) {
                    multiply_by_tiles(a, rows, stride, part, out + g * BLOCK, out_stride, add);
                    continue;
                }
#endif
            if (count == GROUP)
                multiply_group<Number, GROUP>(a, rows, stride, part, out + g * BLOCK, out_stride, add);
            else
                for (int i = 0; i < count; i++)
                    multiply_group<Number, 1>(a, rows, stride, part.from(i, 1), out + (g + i) * BLOCK, out_stride, add);
        }
    }
};

}  // namespace nbp
