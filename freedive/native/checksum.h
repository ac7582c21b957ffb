// A checksum of bytes at memory speed: for faults of disks and copies, not against forgery.
#pragma once

#include <cstdint>
#include <span>

namespace freedive {

// Depends on every bit and on the order of the bytes.
std::uint64_t checksum(std::span<const std::uint8_t> data);

}  // namespace freedive
