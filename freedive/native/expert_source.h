// The source of the routed experts' weights: memory, or a cache in memory of records on disk (paged_experts.h).
#pragma once

#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace freedive {

// A range of bytes in a record.
struct Extent {
    std::size_t offset, size;
};

// The experts of a layer: records of `stride` bytes, one after another.
struct ExpertLayer {
    int count;
    std::size_t stride;
    std::span<const std::uint8_t> packed;  // all records, in memory or in a mapped file
    // For a source that reads the file: where the records begin in it, the parts of a record, and the checksum of each
    // record, which is computed from the checksums of its parts.
    std::uint64_t offset = 0;
    std::vector<Extent> parts = {};
    std::vector<std::uint64_t> checksums = {};
};

// Some of the experts that a step reads in a layer, which are in memory together. A step processes one wave after
// another. `end` is the position after its last expert. `order` has its experts in the order in which they can probably
// be read; whoever reads a record waits for it.
struct Wave {
    int end;
    std::span<const int> order;
};

// Records could not be read, which may succeed later.
struct UnreadableWeights : std::runtime_error {
    struct Record {
        int layer, expert;
        bool operator==(const Record&) const = default;
    };
    UnreadableWeights(const std::string& why, std::vector<Record> records)
        : std::runtime_error(why), records(std::move(records)) {}
    std::vector<Record> records;  // those that threads have asked for
};

class ExpertSource {
  public:
    virtual ~ExpertSource() = default;
    // Returns the number of the layer.
    virtual int add_layer(const ExpertLayer& layer) = 0;
    // Ends recording.
    virtual void allocate() {}
    // Returns for each expert of a layer whether reading it is cheap: it is in memory, or on its way there. Empty if
    // that is so for all. Every thread of the team calls it once before the layer's first wave, or none does; all get
    // the same answer, which is valid until the next layer.
    virtual std::span<const std::uint8_t> cached(int) { return {}; }
    // Returns the wave that begins at position `begin` of `experts`, all routed experts that the step reads in the
    // layer, in ascending order. Every thread of the team calls it once for a wave, after a barrier behind the last
    // product of the wave before it. The wave is valid until the next one.
    virtual Wave acquire(int layer, std::span<const int> experts, int begin) = 0;
    // Returns the record of an expert of the wave.
    virtual const std::uint8_t* record(int layer, int expert) = 0;
    // Throws UnreadableWeights if a record could not be read since the last call; the step's results are then wrong for
    // all tokens that chose its expert.
    virtual void check() {}
    // Ends what the source does beside steps. It is called once, after the last step.
    virtual void end() {}
};

// Records in memory or in a mapped file, of which the operating system reads the pages that are touched.
class MappedExperts final : public ExpertSource {
  public:
    int add_layer(const ExpertLayer& layer) override {
        layers_.push_back({layer.packed.data(), layer.stride});
        return int(layers_.size()) - 1;
    }
    Wave acquire(int, std::span<const int> experts, int begin) override {
        return {int(experts.size()), experts.subspan(begin)};
    }
    const std::uint8_t* record(int layer, int expert) override {
        return layers_[layer].records + layers_[layer].stride * expert;
    }

  private:
    struct Layer {
        const std::uint8_t* records;
        std::size_t stride;
    };
    std::vector<Layer> layers_;
};

}  // namespace freedive
