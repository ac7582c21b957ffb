// Products of groups for levels without an instruction that adds four products to a 32-bit accumulator. Codes of up to
// six bits are multiplied by the high and the low halves of activations in 16-bit accumulators. Each is added to a
// 32-bit accumulator before it can overflow; that of high halves is multiplied by 256 there. Wider codes and their
// activations are converted to 16-bit words; one instruction multiplies two pairs of words and adds the products.

#include "groups.inl"

template <class T>
constexpr bool kTakesWords = T::code_bits > 6;

template <class T>
constexpr int max_code() {
    int most = T::code_bits == T::bits ? (1 << T::bits) - 1 : 0;
    if constexpr (T::code_bits != T::bits)
        for (const int code : T::table) most = code > most ? code : most;
    return most;
}
// The number of quads that a 16-bit accumulator can add without overflow. A lane adds two products of each quad, and a
// half of an activation is at least -128.
template <class T>
constexpr int kShortQuads = 32767 / (2 * max_code<T>() * 128);

template <class T, int First, int Last, int N, int V>
LANES void dot_short(const std::uint8_t* tiles, const std::int8_t* const (&x)[V], S (&acc)[N][V]) {
    if constexpr (First < Last) {
        unroll<N>(EACH(t) {
            const C codes = load_codes<T, First>(tiles + t * kLine * T::tile_lines);
            unroll<V>(EACH(v) { acc[t][v] = s_dot(acc[t][v], codes, four_bytes(x[v] + 4 * First)); });
        });
        dot_short<T, First + 1, Last>(tiles, x, acc);
    }
}

// out = the products of quads [First, Last) of N tiles and V vectors of activation codes, times Unit. They are added to
// `out` if Adds is true. If V is 2 * R, the first R vectors are high halves, the others are low halves.
template <class T, int Unit, int First, int Last, bool Adds = false, int N, int V, int R>
LANES void multiply_tiles(const std::uint8_t* tiles, const std::int8_t* const (&x)[V], I (&out)[N][R]) {
    constexpr int end = First + kShortQuads<T> < Last ? First + kShortQuads<T> : Last;
    constexpr int first_unit = V == R ? Unit : Unit << kLowBits;
    S acc[N][V];
    unroll<N>(EACH(t) { unroll<V>(EACH(v) { acc[t][v] = s_zero(); }); });
    dot_short<T, First, end>(tiles, x, acc);
    unroll<N>(EACH(t) {
        unroll<R>(EACH(r) {
            I total = s_total<first_unit>(acc[t][r]);
            if constexpr (V > R) total = i_add(total, s_total<Unit>(acc[t][R + r]));
            out[t][r] = Adds ? i_add(out[t][r], total) : total;
        });
    });
    if constexpr (end < Last) multiply_tiles<T, Unit, end, Last, true>(tiles, x, out);
}

// Adds the products of a tile and activations that were converted to words.
template <class T, int First, int Last, int R>
LANES void add_words(const std::uint8_t* tile, const std::int16_t (&words)[R][kGroup], I (&out)[R]) {
    if constexpr (First < Last) {
        const W codes = w_codes(load_codes<T, First>(tile));
        unroll<R>(EACH(r) {
            const auto* quad = (const std::int8_t*)(words[r] + 2 * First);
            out[r] = w_dot(out[r], codes, four_bytes(quad), four_bytes(quad + 2 * kOddWords));
        });
        add_words<T, First + 1, Last>(tile, words, out);
    }
}

// The activation rows of a group, and values that are computed once for all tiles.
template <class T, int R>
struct GroupRows {
    const QuantisedGroup* const* a;
    int num_low = 0;          // the number of rows with low halves
    std::int32_t zero[2][R];  // zero products of each half group; [1] is set only if T::halves
    alignas(32) std::int16_t words[R][kGroup];
    LANES explicit GroupRows(const QuantisedGroup* const* a) : a(a) {
        for (int r = 0; r < R; r++) {
            if constexpr (kTakesWords<T>)
                w_store(a[r]->high, a[r]->low, words[r]);
            else
                num_low += a[r]->has_low;
            for (int half = 0; half <= T::halves; half++)
                zero[half][r] =
                    (zero_product<T>(a[r]->high_sum, half) << kLowBits) + zero_product<T>(a[r]->low_sum, half);
        }
    }
    LANES float scale(int r) const { return a[r]->scale; }
};

constexpr int kShortVectors = 6;  // the accumulators of this many vectors fit in the registers

// Adds the products of a tile and low halves to `products`, which has those of the high halves.
template <class T, int First, int Last>
__attribute__((noinline)) void add_low(const std::uint8_t* tile, const std::int8_t* low, std::int32_t* products) {
    const std::int8_t* const x[1] = {low};
    I out[1][1];
    multiply_tiles<T, 1, First, Last>(tile, x, out);
    i_store(products, i_add(i_load(products), out[0][0]));
}

// out = the products of N tiles and both halves of activations. If only some of the rows have low halves, those rows
// are computed one at a time.
template <class T, int First, int Last, int N, int R>
LANES void multiply_halves(const std::uint8_t* tiles, const GroupRows<T, R>& rows, I (&out)[N][R]) {
    constexpr bool at_once = 2 * R <= kShortVectors;
    const std::int8_t *high[R], *low[R];
    unroll<R>(EACH(r) { high[r] = rows.a[r]->high, low[r] = rows.a[r]->low; });
    if constexpr (at_once) {
        if (rows.num_low) {
            const std::int8_t* both[2 * R];
            unroll<R>(EACH(r) { both[r] = high[r], both[R + r] = low[r]; });
            return multiply_tiles<T, 1, First, Last>(tiles, both, out);
        }
    }
    multiply_tiles<T, 1 << kLowBits, First, Last>(tiles, high, out);
    if constexpr (!at_once) {
        static_assert(N == 1);
        if (!rows.num_low) return;
        alignas(kLine) std::int32_t products[R][kTileRows];
        unroll<R>(EACH(r) { i_store(products[r], out[0][r]); });
        if (rows.num_low == R) {
            multiply_tiles<T, 1, First, Last>(tiles, low, out);
            unroll<R>(EACH(r) { out[0][r] = i_add(i_load(products[r]), out[0][r]); });
        } else {
            for (int r = 0; r < R; r++)
                if (rows.a[r]->has_low) add_low<T, First, Last>(tiles, low[r], products[r]);
            unroll<R>(EACH(r) { out[0][r] = i_load(products[r]); });
        }
    }
}

// out = the products of quads [First, Last) of N tiles and the activations, less the zero point.
template <class T, int First, int Last, int Half, int N, int R>
LANES void multiply(const std::uint8_t* tiles, const GroupRows<T, R>& rows, I (&out)[N][R]) {
    if constexpr (kTakesWords<T>) {
        static_assert(N == 1);
        unroll<R>(EACH(r) { out[0][r] = i_set(0); });
        const auto* words = &rows.words;
        asm("" : "+r"(words));  // GCC would take the words out of vectors, and keep them for the next tile on the stack
        add_words<T, First, Last>(tiles, *words, out[0]);
    } else {
        multiply_halves<T, First, Last>(tiles, rows, out);
    }
    if constexpr (T::zero != 0)
        unroll<R>(EACH(r) { unroll<N>(EACH(t) { out[t][r] = i_add(out[t][r], i_set(rows.zero[Half][r])); }); });
}

// With one row the registers suffice for both tiles, and the activations are loaded once for both.
template <class T, int R>
constexpr int kTilesAtOnce = R == 1 && !kTakesWords<T> ? 2 : 1;

#include "groups_by_tile.inl"
