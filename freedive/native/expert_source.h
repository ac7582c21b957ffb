// Where the records of routed experts are read from: mapped files today; a cache of slots over a disk can take its
// place.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace freedive {

// A layer's experts are wanted once a step: when its routes are known, before the first product.
class ExpertSource {
  public:
    virtual ~ExpertSource() = default;
    // Returns the number of the layer whose records lie in `records`, `stride` bytes apart.
    virtual int add_layer(std::span<const std::uint8_t> records, std::size_t stride) = 0;
    // Every thread of the team calls it with all experts that the step reads of the layer, in ascending order; it
    // returns when their records can be read.
    virtual void acquire(int layer, std::span<const int> experts) = 0;
    // Of an expert that was acquired.
    virtual const std::uint8_t* record(int layer, int expert) const = 0;
    // Every thread calls it when it has computed its last product of the layer.
    virtual void release(int layer) = 0;
};

// Records in memory, or in a file that is mapped: the system reads what is touched.
class MappedExperts final : public ExpertSource {
  public:
    int add_layer(std::span<const std::uint8_t> records, std::size_t stride) override {
        layers_.push_back({records.data(), stride});
        return int(layers_.size()) - 1;
    }
    void acquire(int, std::span<const int>) override {}
    const std::uint8_t* record(int layer, int expert) const override {
        return layers_[layer].records + layers_[layer].stride * expert;
    }
    void release(int) override {}

  private:
    struct Layer {
        const std::uint8_t* records;
        std::size_t stride;
    };
    std::vector<Layer> layers_;
};

}  // namespace freedive
