// Products of groups for levels with an instruction that adds four products to a 32-bit accumulator, but registers for
// the accumulators of one tile only.

#include "groups.inl"

template <class T, int R>
constexpr int kTilesAtOnce = R == 1 ? 2 : 1;

// The activation rows of a group.
template <class T, int R>
struct GroupRows {
    const QuantisedGroup* const* a;
    bool any_low = false;
    LANES explicit GroupRows(const QuantisedGroup* const* a) : a(a) {
        for (int r = 0; r < R; r++) any_low |= a[r]->has_low;
    }
};

// Adds the products of quads [First, Last) of N tiles and one half of the activations, high or low.
template <class T, int First, int Last, int N, int R>
LANES void dot_quads(const std::uint8_t* tiles, const std::int8_t* const (&x)[R], I (&acc)[N][R]) {
    if constexpr (First < Last) {
        unroll<N>(EACH(t) {
            const C codes = load_codes<T, First>(tiles + t * kLine * T::tile_lines);
            unroll<R>(EACH(r) {
                acc[t][r] = i_dot<T::code_bits>(acc[t][r], codes, four_bytes(x[r] + 4 * First));
            });
        });
        dot_quads<T, First + 1, Last>(tiles, x, acc);
    }
}

// out = the products of quads [First, Last) of N tiles and the activations.
template <class T, int First, int Last, int N, int R>
LANES void multiply(const std::uint8_t* tiles, const GroupRows<T, R>& rows, I (&out)[N][R]) {
    const std::int8_t *high[R], *low[R];
    unroll<R>(EACH(r) { high[r] = rows.a[r]->high, low[r] = rows.a[r]->low; });
    unroll<N>(EACH(t) { unroll<R>(EACH(r) { out[t][r] = i_set(0); }); });
    dot_quads<T, First, Last>(tiles, high, out);
    unroll<N>(EACH(t) { unroll<R>(EACH(r) { out[t][r] = i_shift_left<kLowBits>(out[t][r]); }); });
    if (rows.any_low) dot_quads<T, First, Last>(tiles, low, out);
}

#include "groups_by_tile.inl"
