// Tile instructions on a machine without AMX: each traps, is decoded, and is executed in software. A machine with AMX
// executes them.
#pragma once

#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <cstring>
#include <optional>

#include "../../freedive/native/isa/emulated_tiles.h"

namespace freedive {

constexpr int kRegisters[] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                              REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};

inline std::optional<EmulatedTiles> tiles;
inline int num_trapped = 0;

// An instruction with a three-byte VEX prefix, 64-bit addresses and no immediate, by Intel's manual, volume 2,
// chapter 2.
struct Instruction {
    const greg_t* registers;
    const std::uint8_t* bytes;
    int prefix = bytes[2] & 3;  // 1: 66, 2: F3, 3: F2
    int operand = ~bytes[2] >> 3 & 15, opcode = bytes[3];
    int mod = bytes[4] >> 6, reg = bytes[4] >> 3 & 7, rm = bytes[4] & 7;
    bool has_sib = mod != 3 && rm == 4, is_relative = mod == 0 && rm == 5;
    int base = has_sib ? bytes[5] & 7 : rm;
    int displacement_bytes = mod == 1 ? 1 : mod == 2 || is_relative || (mod == 0 && has_sib && base == 5) ? 4 : 0;
    int length = 5 + has_sib + (mod == 3 ? 0 : displacement_bytes);

    greg_t value(int low, int high_bit) const {  // the high bit of a register's number is stored inverted
        return registers[kRegisters[low | (bytes[1] & high_bit ? 0 : 8)]];
    }
    greg_t stride() const { return value(bytes[5] >> 3 & 7, 0x40) << (bytes[5] >> 6); }
    void* address() const {  // without the index, which is the stride
        std::int32_t displacement = 0;
        if (displacement_bytes == 1) displacement = std::int8_t(bytes[length - 1]);
        if (displacement_bytes == 4) std::memcpy(&displacement, bytes + length - 4, 4);
        if (is_relative) return (void*)(bytes + length + displacement);
        const bool has_base = mod != 0 || base != 5;
        return (void*)((has_base ? value(base, 0x20) : 0) + displacement);
    }
};

inline void take_trap(int, siginfo_t*, void* context) {
    greg_t* registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
    const Instruction i{registers, (const std::uint8_t*)registers[REG_RIP]};
    const int kind = i.opcode << 4 | i.prefix;
    if (i.bytes[0] != 0xc4 || (i.bytes[1] & 31) != 2 || i.bytes[2] & 0x84) std::abort();  // VEX.128.0F38.W0
    if (kind == 0x490 && i.mod == 3)
        tiles.reset();
    else if (kind == 0x490)
        tiles.emplace(*(const TileConfig*)i.address());
    else if (kind == 0x493)
        tiles->zero(i.reg);
    else if (kind == 0x4b3)
        tiles->load(i.reg, i.address(), i.stride());
    else if (kind == 0x4b2)
        tiles->store(i.reg, i.address(), i.stride());
    else if (kind == 0x5e3)
        tiles->dot(i.reg, i.rm, i.operand);
    else if (kind == 0x5c2)
        tiles->dot_bf16(i.reg, i.rm, i.operand);
    else
        std::abort();
    registers[REG_RIP] += i.length;
    num_trapped++;
}

inline void take_traps() {
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    syscall(SYS_arch_prctl, kRequestPermission, kTileData);  // refused on machines without tiles
    struct sigaction action{};
    action.sa_sigaction = take_trap;
    action.sa_flags = SA_SIGINFO;
    sigaction(SIGILL, &action, nullptr);
}

}  // namespace freedive
