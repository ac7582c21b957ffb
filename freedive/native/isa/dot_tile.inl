// Products of groups for levels with an instruction that adds four products to a 32-bit accumulator, but registers for
// the accumulators of one tile only.

#include "groups.inl"

// With one row the registers suffice for both tiles, and the activations are loaded once for both.
template <class T, int R>
constexpr int kTilesAtOnce = R == 1 ? 2 : 1;

// The activation rows of a group, and values that are computed once for both tiles.
template <class T, int R>
struct GroupRows {
    const QuantisedGroup* const* a;
    bool any_low = false;
    std::int32_t high_zero[2][R], low_zero[2][R];  // zero products of each half group; [1] is set only if T::halves
    float scales[R];
    LANES explicit GroupRows(const QuantisedGroup* const* a) : a(a) {
        for (int r = 0; r < R; r++) {
            any_low |= a[r]->has_low;
            for (int half = 0; half <= T::halves; half++) {
                high_zero[half][r] = zero_product<T>(a[r]->high_sum, half);
                low_zero[half][r] = zero_product<T>(a[r]->low_sum, half);
            }
        }
        // Without low halves the scale is multiplied by this power of two, which is exact, instead of shifting the
        // products.
        const float unit = any_low ? 1 : 1 << kLowBits;
        for (int r = 0; r < R; r++) scales[r] = a[r]->scale * unit;
    }
    LANES float scale(int r) const { return scales[r]; }
};

// Adds the products of quads [First, Last) of N tiles and V vectors of activation codes.
template <class T, int First, int Last, int N, int V>
LANES void add_dots(const std::uint8_t* tiles, const std::int8_t* const (&x)[V], I (&acc)[N][V]) {
    if constexpr (First < Last) {
        unroll<N>(EACH(t) {
            const C codes = load_codes<T, First>(tiles + t * kLine * T::tile_lines);
            unroll<V>(EACH(v) { acc[t][v] = i_dot<T::code_bits>(acc[t][v], codes, four_bytes(x[v] + 4 * First)); });
        });
        add_dots<T, First + 1, Last>(tiles, x, acc);
    }
}

// out = the products of rows [Begin, End) and N tiles, less the zero point. Both halves of activations are multiplied
// while a quad's codes are in registers.
template <class T, int First, int Last, int Half, int Begin, int End, int N, int R>
LANES void multiply_at_once(const std::uint8_t* tiles, const GroupRows<T, R>& rows, I (&out)[N][R]) {
    constexpr int n = End - Begin;
    if constexpr (n > kRowsAtOnce) {  // more accumulators than registers
        constexpr int middle = Begin + (n + 1) / 2;
        multiply_at_once<T, First, Last, Half, Begin, middle>(tiles, rows, out);
        asm("" : "+r"(tiles));  // the codes are loaded again: codes kept in registers would spill accumulators
        multiply_at_once<T, First, Last, Half, middle, End>(tiles, rows, out);
    } else {
        const std::int8_t* x[2 * n];
        I acc[N][2 * n];
        unroll<n>(EACH(i) {
            constexpr int r = Begin + i;
            x[i] = rows.a[r]->high, x[n + i] = rows.a[r]->low;
            unroll<N>(EACH(t) {
                acc[t][i] = i_set(rows.high_zero[Half][r]);
                acc[t][n + i] = i_set(rows.low_zero[Half][r]);
            });
        });
        add_dots<T, First, Last>(tiles, x, acc);
        unroll<n>(EACH(i) {
            unroll<N>(EACH(t) { out[t][Begin + i] = i_add(i_shift_left<kLowBits>(acc[t][i]), acc[t][n + i]); });
        });
    }
}

// The same for all rows, first with high halves and then, if any row has them, with low halves. Without low halves, out
// is in units of 2^kLowBits.
template <class T, int First, int Last, int Half, int N, int R>
LANES void multiply_in_turn(const std::uint8_t* tiles, const GroupRows<T, R>& rows, I (&out)[N][R]) {
    const std::int8_t *high[R], *low[R];
    unroll<R>(EACH(r) {
        high[r] = rows.a[r]->high, low[r] = rows.a[r]->low;
        unroll<N>(EACH(t) { out[t][r] = i_set(rows.high_zero[Half][r]); });
    });
    add_dots<T, First, Last>(tiles, high, out);
    if (!rows.any_low) return;
    unroll<R>(EACH(r) {
        const I zero = i_set(rows.low_zero[Half][r]);
        unroll<N>(EACH(t) { out[t][r] = i_add(i_shift_left<kLowBits>(out[t][r]), zero); });
    });
    add_dots<T, First, Last>(tiles, low, out);
}

// out = the products of quads [First, Last) of N tiles and the activations, less the zero point. With more rows, half
// groups are too short for multiply_at_once() to pay.
template <class T, int First, int Last, int Half, int N, int R>
LANES void multiply(const std::uint8_t* tiles, const GroupRows<T, R>& rows, I (&out)[N][R]) {
    constexpr bool at_once = !T::halves || R <= kRowsAtOnce;
    if (at_once && rows.any_low)
        multiply_at_once<T, First, Last, Half, 0, R>(tiles, rows, out);
    else
        multiply_in_turn<T, First, Last, Half>(tiles, rows, out);
}

#include "groups_by_tile.inl"
