// Memory for intermediate results. It is reused by the next computation, since getting fresh memory takes longer than
// filling it.
#pragma once

#include <algorithm>
#include <vector>

#include "../memory.h"

namespace freedive {

class Arena {
  public:
    // Frees everything that was taken, for reuse.
    void clear() { chunk_ = used_ = 0; }
    // Returns room for `count` numbers on their own cache lines; the contents are undefined.
    template <class T = float>
    T* take(std::size_t count) {
        const std::size_t bytes = (count * sizeof(T) + kLine - 1) / kLine * kLine;
        while (chunk_ < chunks_.size() && used_ + bytes > chunks_[chunk_].bytes) chunk_++, used_ = 0;
        if (chunk_ == chunks_.size()) {
            const std::size_t size = std::max(bytes, kChunk);
            chunks_.push_back({Memory(size), size});
        }
        T* taken = (T*)(chunks_[chunk_].memory.as<char>() + used_);
        used_ += bytes;
        return taken;
    }

  private:
    static constexpr std::size_t kLine = 64, kChunk = std::size_t(2) << 20;
    struct Chunk {
        Memory memory;
        std::size_t bytes;
    };
    std::vector<Chunk> chunks_;
    std::size_t chunk_ = 0, used_ = 0;
};

}  // namespace freedive
