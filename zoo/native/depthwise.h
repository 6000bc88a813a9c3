// Depthwise convolution of channels_last images by 3x3 or 5x5 weights, and its gradients.
//
// Sixteen channels at a time, as float32 with a border of zeros, so that no product asks where it is. A sum over
// positions is made in float32 within a few rows, within a few images, and in float64 over the rest: the same bits for
// any number of threads and any width of a vector.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "numbers.h"

namespace {

constexpr int64_t kVector = 16;      // channels side by side
constexpr int64_t kPositions = 256;  // of one sum in float32, at least a row
constexpr int64_t kImages = 8;       // that one thread takes at a time

typedef float Vector __attribute__((vector_size(kVector * sizeof(float))));
typedef uint32_t Words __attribute__((vector_size(kVector * sizeof(uint32_t))));
typedef uint16_t Halves __attribute__((vector_size(kVector * sizeof(uint16_t))));

struct Shape {
    int64_t images, channels, height, width, kernel, stride, pad_y, pad_x, out_height, out_width;

    explicit Shape(const int64_t* s)
        : images(s[0]), channels(s[1]), height(s[2]), width(s[3]), kernel(s[4]), stride(s[5]), pad_y(s[6]), pad_x(s[7]),
          out_height(s[8]), out_width(s[9]) {}
    int64_t groups() const { return (channels + kVector - 1) / kVector; }
    int64_t lanes(int64_t group) const { return std::min(kVector, channels - group * kVector); }
    int64_t chunks() const { return (images + kImages - 1) / kImages; }
};

inline void widen(const float* p, Vector& value) { std::memcpy(&value, p, sizeof value); }

inline void widen(const bfloat* p, Vector& value) {
    Halves halves;
    std::memcpy(&halves, p, sizeof halves);
    value = (Vector)(__builtin_convertvector(halves, Words) << 16);
}

inline void narrow(float* p, const Vector& value) { std::memcpy(p, &value, sizeof value); }

// as store() rounds
inline void narrow(bfloat* p, const Vector& value) {
    const Words wide = (Words)value;
    const Words rounded = (wide + 0x7fffu + ((wide >> 16) & 1u)) >> 16;
    const Words nan = (Words)((wide & 0x7fffffffu) > 0x7f800000u);
    const Halves halves = __builtin_convertvector((nan & 0x7fc0u) | (~nan & rounded), Halves);
    std::memcpy(p, &halves, sizeof halves);
}

template <class T>
inline void read(const T* p, int64_t lanes, Vector& value) {
    if (lanes == kVector) return widen(p, value);
    for (int64_t l = 0; l < kVector; ++l) value[l] = l < lanes ? load(p + l) : 0.0f;
}

template <class T>
inline void write(T* p, int64_t lanes, const Vector& value) {
    if (lanes == kVector) return narrow(p, value);
    for (int64_t l = 0; l < lanes; ++l) store(p + l, value[l]);
}

// one group of channels of one image, with a border of zeros
struct Plane {
    int64_t height, width, top, left, stride;
    std::vector<Vector> values;

    Plane(int64_t height_, int64_t width_, int64_t top_, int64_t left_)
        : height(height_), width(width_), top(top_), left(left_), stride(width_ + 2 * left_),
          values((height_ + 2 * top_) * stride, Vector{}) {}
    const Vector* at(int64_t y, int64_t x) const { return values.data() + (y + top) * stride + x + left; }

    template <class T>
    void fill(const T* p, int64_t channels, int64_t lanes) {
        for (int64_t y = 0; y < height; ++y) {
            Vector* row = values.data() + (y + top) * stride + left;
            for (int64_t x = 0; x < width; ++x) read(p + (y * width + x) * channels, lanes, row[x]);
        }
    }
};

// [channels, kernel, kernel] as [groups, kernel, kernel] of vectors
std::vector<Vector> grouped(const float* weight, const Shape& s) {
    const int64_t taps = s.kernel * s.kernel;
    std::vector<Vector> result(s.groups() * taps, Vector{});
    for (int64_t c = 0; c < s.channels; ++c)
        for (int64_t t = 0; t < taps; ++t) result[c / kVector * taps + t][c % kVector] = weight[c * taps + t];
    return result;
}

template <int K, class T>
void convolve(const Plane& plane, const Vector* weight, const Vector& bias, const Shape& s, int64_t lanes, T* target) {
    Vector w[K * K];
    std::copy_n(weight, K * K, w);  // nothing that is written below can be one of these
    for (int64_t i = 0; i < s.out_height; ++i)
        for (int64_t j = 0; j < s.out_width; ++j) {
            const Vector* source = plane.at(i * s.stride - s.pad_y, j * s.stride - s.pad_x);
            Vector sum = bias;
            for (int a = 0; a < K; ++a)
                for (int b = 0; b < K; ++b) sum += source[a * plane.stride + b] * w[a * K + b];
            write(target + (i * s.out_width + j) * s.channels, lanes, sum);
        }
}

// gradients of the weight [K, K] and the bias, added to ``sums``
template <int K>
void correlate(const Plane& plane, const Plane& grad, const Shape& s, Vector* sums) {
    const int64_t rows = std::max<int64_t>(1, kPositions / s.out_width);
    for (int64_t start = 0; start < s.out_height; start += rows) {
        Vector near[K * K + 1] = {};
        for (int64_t i = start; i < std::min(s.out_height, start + rows); ++i)
            for (int64_t j = 0; j < s.out_width; ++j) {
                const Vector g = *grad.at(i, j);
                const Vector* source = plane.at(i * s.stride - s.pad_y, j * s.stride - s.pad_x);
                for (int a = 0; a < K; ++a)
                    for (int b = 0; b < K; ++b) near[a * K + b] += source[a * plane.stride + b] * g;
                near[K * K] += g;
            }
        for (int t = 0; t <= K * K; ++t) sums[t] += near[t];
    }
}

// gradient of the image: at each position the taps that the stride leaves
template <int K, class T>
void spread(const Plane& grad, const Vector* weight, const Shape& s, int64_t lanes, T* target) {
    Vector w[K * K];
    std::copy_n(weight, K * K, w);
    for (int64_t y = 0; y < s.height; ++y)
        for (int64_t x = 0; x < s.width; ++x) {
            Vector sum{};
            const int64_t below = y + s.pad_y, right = x + s.pad_x;
            for (int64_t a = below % s.stride; a < K; a += s.stride)
                for (int64_t b = right % s.stride; b < K; b += s.stride)
                    sum += *grad.at((below - a) / s.stride, (right - b) / s.stride) * w[a * K + b];
            write(target + (y * s.width + x) * s.channels, lanes, sum);
        }
}

template <int K, class T>
void depthwise_forward_of(const T* x, const float* weight, const float* bias, T* y, const Shape& s, int threads) {
    const std::vector<Vector> weights = grouped(weight, s);
#pragma omp parallel for num_threads(threads)
    for (int64_t chunk = 0; chunk < s.chunks(); ++chunk) {
        Plane plane(s.height, s.width, s.pad_y, s.pad_x);
        for (int64_t n = chunk * kImages; n < std::min(s.images, (chunk + 1) * kImages); ++n)
            for (int64_t group = 0; group < s.groups(); ++group) {
                const int64_t lanes = s.lanes(group), first = group * kVector;
                Vector start{};
                if (bias != nullptr) read(bias + first, lanes, start);
                plane.fill(x + n * s.height * s.width * s.channels + first, s.channels, lanes);
                T* target = y + n * s.out_height * s.out_width * s.channels + first;
                convolve<K>(plane, weights.data() + group * K * K, start, s, lanes, target);
            }
    }
}

template <int K, class T>
void depthwise_backward_of(const T* x, const T* g, const float* weight, T* dx, float* dweight, float* dbias,
                           const Shape& s, int threads) {
    constexpr int64_t kSums = K * K + 1;
    const std::vector<Vector> weights = grouped(weight, s);
    std::vector<Vector> partial(s.chunks() * s.groups() * kSums, Vector{});
#pragma omp parallel for num_threads(threads)
    for (int64_t chunk = 0; chunk < s.chunks(); ++chunk) {
        Plane plane(s.height, s.width, s.pad_y, s.pad_x);
        Plane grad(s.out_height, s.out_width, K - 1, K - 1);
        for (int64_t n = chunk * kImages; n < std::min(s.images, (chunk + 1) * kImages); ++n)
            for (int64_t group = 0; group < s.groups(); ++group) {
                const int64_t lanes = s.lanes(group), first = group * kVector;
                const int64_t at = n * s.height * s.width * s.channels + first;
                plane.fill(x + at, s.channels, lanes);
                grad.fill(g + n * s.out_height * s.out_width * s.channels + first, s.channels, lanes);
                correlate<K>(plane, grad, s, partial.data() + (chunk * s.groups() + group) * kSums);
                spread<K>(grad, weights.data() + group * K * K, s, lanes, dx + at);
            }
    }
    for (int64_t c = 0; c < s.channels; ++c)
        for (int64_t t = 0; t < kSums; ++t) {
            double sum = 0.0;
            for (int64_t chunk = 0; chunk < s.chunks(); ++chunk)
                sum += partial[(chunk * s.groups() + c / kVector) * kSums + t][c % kVector];
            (t < K * K ? dweight[c * K * K + t] : dbias[c]) = static_cast<float>(sum);
        }
}

template <class T>
void depthwise_forward(const T* x, const float* weight, const float* bias, T* y, const Shape& s, int threads) {
    if (s.kernel == 3)
        depthwise_forward_of<3>(x, weight, bias, y, s, threads);
    else
        depthwise_forward_of<5>(x, weight, bias, y, s, threads);
}

template <class T>
void depthwise_backward(const T* x, const T* g, const float* weight, T* dx, float* dweight, float* dbias,
                        const Shape& s, int threads) {
    if (s.kernel == 3)
        depthwise_backward_of<3>(x, g, weight, dx, dweight, dbias, s, threads);
    else
        depthwise_backward_of<5>(x, g, weight, dx, dweight, dbias, s, threads);
}

}  // namespace
