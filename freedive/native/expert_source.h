// The source of the routed experts' weights. Today it is a mapped file; later it can be a cache in memory of experts on
// disk.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace freedive {

// A step asks for a layer's experts once, after the routes are known and before the first product.
class ExpertSource {
  public:
    virtual ~ExpertSource() = default;
    // Returns the number of the layer whose records lie in `records`, `stride` bytes apart.
    virtual int add_layer(std::span<const std::uint8_t> records, std::size_t stride) = 0;
    // Returns when the records of all `experts` can be read. Every thread of the team calls it with all experts of the
    // layer that the step reads, in ascending order.
    virtual void acquire(int layer, std::span<const int> experts) = 0;
    // Returns the record of an acquired expert.
    virtual const std::uint8_t* record(int layer, int expert) const = 0;
    // Every thread calls it after its last product of the layer.
    virtual void release(int layer) = 0;
};

// Records in memory or in a mapped file, of which the operating system reads the pages that are touched.
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
