// Runs products of bfloat16 on tiles whose instructions trap, and compares them with those of the software tiles.
// Prints the number of trapped instructions.
#include <cstdio>
#include <random>
#include <vector>

#include "../../freedive/native/isa/train.h"
#include "traps.h"

#define LANES inline __attribute__((always_inline))
namespace freedive::tested {
#include "../../freedive/native/isa/bf16.inl"

#include "../../freedive/native/isa/tile_products.inl"  // uses it
}  // namespace freedive::tested

using namespace freedive;

namespace {

std::mt19937 random_bits(7);

std::vector<float> some(int rows, int columns) {
    std::vector<float> numbers(std::size_t(rows) * columns);
    for (float& x : numbers) x = float(int(random_bits() % 2001) - 1000) / 333;
    return numbers;
}

// left [rows, k] times right [k, columns], which fit into one tile.
std::vector<float> product(const FloatProducts& by, const std::vector<float>& left, const std::vector<float>& right,
                           int rows, int k, int columns, bool adds) {
    std::vector<float> packed_left(by.cells(k) * by.tile_rows), packed_right(by.cells(k) * by.tile_columns);
    std::vector<float> out(std::size_t(rows) * columns, 1.0f);
    by.pack_left_rows({left.data(), k}, rows, 0, k, packed_left.data());
    by.pack_columns({right.data(), columns}, k, 0, columns, packed_right.data());
    const ProductTile tile{{packed_left.data(), 1}, 0, packed_right.data(), k, rows, columns, adds,
                           {out.data(), columns}};
    by.multiply(&tile, 1);
    return out;
}

bool same_products(int rows, int k, int columns) {
    const auto left = some(rows, k), right = some(k, columns);
    const bool adds = rows % 2;
    const auto trapped = product(tested::tile_products<Tiles, tested::PlainCells>, left, right, rows, k, columns, adds);
    const auto expected =
        product(tested::tile_products<EmulatedTiles, tested::PlainCells>, left, right, rows, k, columns, adds);
    return std::memcmp(trapped.data(), expected.data(), trapped.size() * sizeof(float)) == 0;
}

}  // namespace

int main() {
    take_traps();
    bool same = true;
    for (const int rows : {1, 15, 16, 17, 32})
        for (const int k : {1, 31, 32, 33, 300})
            for (const int columns : {1, 16, 17, 32}) same &= same_products(rows, k, columns);
    std::printf("%d\n", num_trapped);
    return !same;
}
