// A checksum of bytes at memory speed. It detects faults of disks and copies, but is no protection against forgery.
#pragma once

#include <cstdint>
#include <span>

namespace freedive {

// Returns 64 bits that depend on every bit and on the order of the bytes.
std::uint64_t checksum(std::span<const std::uint8_t> data);

}  // namespace freedive
