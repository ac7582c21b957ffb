// A cache in memory of experts on disk. Its memory is divided into slots, each of which holds one record. A record that
// is missing replaces the one that was used least, where a use counts half as much after eight steps (LRFU: Lee et al.
// 2001, "A spectrum of policies that subsumes the least recently used and least frequently used policies").
#pragma once

#include <chrono>
#include <memory>
#include <mutex>

#include "memory.h"
#include "record_reader.h"

namespace freedive {

// What a layer's records cost so far. `stalled_s` is the time that threads waited, as a mean over the team.
struct ExpertTraffic {
    std::int64_t hits = 0, misses = 0, bytes = 0;
    double stalled_s = 0;
};

struct PagingOptions {
    std::string path;
    std::size_t num_bytes;  // of all slots together
    bool direct;
    int num_readers;
    double timeout_s;
    // Of each layer: its experts in the order in which free memory is filled. What does not fit the layers is ignored.
    std::vector<std::vector<int>> order = {};
};

class PagedExperts final : public ExpertSource, public std::enable_shared_from_this<PagedExperts> {
  public:
    PagedExperts(const PagingOptions& options, int team_size);
    int add_layer(const ExpertLayer& layer) override;
    void allocate() override;
    std::span<const std::uint8_t> cached(int layer) override;
    Wave acquire(int layer, std::span<const int> experts, int begin) override;
    const std::uint8_t* record(int layer, int expert) override;
    void check() override;
    void end() override { reader_.end(); }

    // Bytes of all slots, and of those that hold a record.
    std::size_t num_bytes() const;
    std::size_t num_used_bytes() const;
    std::vector<ExpertTraffic> traffic() const;
    // Of each layer: the experts that the last step read.
    std::vector<std::vector<int>> missed() const;

  private:
    static constexpr int kNowhere = -1;
    struct Slot : RecordSlot {
        int layer = kNowhere, expert = kNowhere;
        bool pinned = false;  // belongs to the wave, or to the next one, or is still loading for an earlier one
        bool ahead = false;   // was read for a layer that has not begun
        bool passes = false;  // was read by a scan, so that it is the next to be replaced
    };
    // The slots for records of one size.
    struct Pool {
        std::size_t stride = 0, total = 0;  // total: bytes of the records of all layers
        int num_layers = 0;
        Memory memory{};
        std::vector<Slot> slots{};
        std::vector<double> ranks{};  // of each slot: the use of its expert; the lowest is replaced first
        std::vector<int> pinned{};    // slots, some of which may have been unpinned meanwhile
        int num_pinned = 0;
        int num_used = 0;  // slots from here on never held a record
        int num_unpinned() const { return int(slots.size()) - num_pinned; }
        std::uint8_t* at(int slot) const { return memory.as<std::uint8_t>() + stride * slot; }
    };
    struct Layer {
        FileLayer records;
        Pool* pool;
        std::vector<int> slots;    // of each expert, or kNowhere
        std::vector<int> order;    // in which free memory is filled
        std::vector<double> uses;  // of each expert: the logarithm of its uses, later ones counting more
        ExpertTraffic traffic{};
        std::vector<int> missed{};  // experts that were not in memory in this step
    };

    void plan(Layer& layer, std::span<const int> experts, int begin);
    void pin_hits(Layer& layer, std::span<const int> experts, bool scans);
    bool pin(Layer& layer, int expert, bool scans);
    void use(Layer& layer, int expert) const;
    void unpin(Pool& pool, int slot);
    void unpin_all(const Layer& except);
    void read_ahead(Layer& layer);
    int replaceable(const Pool& pool) const;
    void load(Layer& layer, int expert, int slot);
    bool warm_up();
    std::vector<int> order_of(std::size_t layer, int count) const;
    void order_wave(const Layer& layer, std::span<const int> experts);
    bool wait(Layer& layer, const Slot& slot);
    const std::uint8_t* unread(int layer, int expert);

    const PagingOptions options_;
    const int team_size_;
    std::vector<std::unique_ptr<Pool>> pools_;
    std::vector<Layer> layers_;
    Memory zeros_;                                     // stands for records that could not be read
    std::vector<UnreadableWeights::Record> unread_{};  // since the last check

    mutable std::mutex mutex_;
    double now_ = 0;     // steps so far, in half-lives of a use
    int num_looks_ = 0;  // calls of cached, for this layer
    std::vector<std::uint8_t> cached_;
    int num_calls_ = 0;           // of acquire, for this wave
    bool lacks_slots_ = false;    // the disk answers so late that every slot is loading
    int begin_ = 0, end_ = 0;     // of the wave
    std::vector<int> order_;      // of the wave
    std::size_t num_warmed_ = 0;  // records that the warm-up has passed
    RecordReader reader_;
};

}  // namespace freedive
