// Numbers of a tensor as float32.

#pragma once

#include <cstdint>
#include <cstring>

namespace {

struct bfloat {
    uint16_t bits;
};

inline float load(const float* p) { return *p; }

inline float load(const bfloat* p) {
    const uint32_t wide = static_cast<uint32_t>(p->bits) << 16;
    float value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
}

inline void store(float* p, float value) { *p = value; }

inline void store(bfloat* p, float value) {
    uint32_t wide;
    std::memcpy(&wide, &value, sizeof wide);
    const uint32_t rounded = (wide + 0x7fffu + ((wide >> 16) & 1u)) >> 16;
    // NaN would round to infinity
    p->bits = static_cast<uint16_t>((wide & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

}  // namespace
