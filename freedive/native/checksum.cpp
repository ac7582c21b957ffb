#include "checksum.h"

#include <bit>
#include <cstring>

namespace freedive {
namespace {

constexpr int kLanes = 8;  // multiplications in flight
constexpr std::uint64_t kPrime = 0x9e3779b185ebca87, kOther = 0xc2b2ae3d27d4eb4f;

// A round of xxHash64. It is a bijection in each argument, so a change of one word always changes the result.
std::uint64_t stir(std::uint64_t state, std::uint64_t word) { return std::rotl(state + word * kOther, 31) * kPrime; }

}  // namespace

std::uint64_t checksum(std::span<const std::uint8_t> data) {
    constexpr std::size_t block = kLanes * sizeof(std::uint64_t);
    std::uint64_t lanes[kLanes], words[kLanes];
    for (int i = 0; i < kLanes; i++) lanes[i] = std::uint64_t(i + 1) * kPrime;
    const auto take = [&] {
        for (int i = 0; i < kLanes; i++) lanes[i] = stir(lanes[i], words[i]);
    };
    std::size_t at = 0;
    for (; at + block <= data.size(); at += block) {
        std::memcpy(words, data.data() + at, block);
        take();
    }
    std::memset(words, 0, block);
    if (at < data.size()) std::memcpy(words, data.data() + at, data.size() - at);
    take();
    std::uint64_t state = data.size();
    for (const std::uint64_t lane : lanes) state = stir(state, lane);
    return state ^ state >> 32;
}

}  // namespace freedive
