// Learned fake quantization in one pass over memory each way, with and without the BatchNorm before it, and that
// BatchNorm with an activation that is a clamp.
//
// Sums are made in an order that depends on neither the number of threads nor the width of a vector: float32 within
// blocks of a fixed size, float64 over the blocks. Compiled without contraction or reassociation, so that every
// compiler and processor comes to the same bits.

#include <cmath>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "depthwise.h"
#include "numbers.h"

namespace {

// a NaN fails both comparisons and stays one
inline float clamped(float value, float low, float high) {
    value = value < low ? low : value;
    return value > high ? high : value;
}

// what the gradient of the scale is made of: rounding and clipping, clipping alone, nothing (and nothing is rounded)
enum class Mode { kRounding, kClipping, kFloat };

template <Mode mode>
inline float code_of(float real, float low, float high) {
    const float value = clamped(real, low, high);
    return mode == Mode::kFloat ? value : std::rint(value);
}

// one element's share of the gradients: p is g inside the range, slope g (code - [inside] real), outside g - p
struct Share {
    float p, slope, outside;
};

template <Mode mode>
inline Share share(float real, float g, float low, float high) {
    const bool inside = (real > low) & (real < high);
    const float p = inside ? g : 0.0f;
    if (mode == Mode::kFloat) return {p, 0.0f, 0.0f};
    const float code = code_of<mode>(real, low, high);
    return {p, g * (code - (inside ? (mode == Mode::kRounding ? real : code) : 0.0f)), g - p};
}

// calls with the mode as a constant
template <class F>
void dispatch(int mode, F call) {
    if (mode == 0)
        call(std::integral_constant<Mode, Mode::kRounding>{});
    else if (mode == 1)
        call(std::integral_constant<Mode, Mode::kClipping>{});
    else
        call(std::integral_constant<Mode, Mode::kFloat>{});
}

constexpr int64_t kChunk = 1 << 16;  // elements that one thread takes at a time
constexpr int64_t kRows = 64;        // rows of a sum in float32
constexpr int64_t kWide = 128;       // least elements of an inner loop, where rows can be joined
constexpr int64_t kLanes = 16;       // sums side by side along a row
constexpr int64_t kBlock = 1 << 12;  // elements of those sums

// [rows, channels] seen as [rows / join, channels * join]: few channels would leave vectors half empty
struct Matrix {
    int64_t rows, width, channels, chunk;

    Matrix(int64_t rows_, int64_t channels_) : rows(rows_), width(channels_), channels(channels_) {
        while (width < kWide && rows % 2 == 0) {
            rows /= 2;
            width *= 2;
        }
        chunk = kChunk / width / kRows * kRows;
        if (chunk < kRows) chunk = kRows;
    }
    int64_t chunks() const { return (rows + chunk - 1) / chunk; }
    int64_t end(int64_t i) const { return (i + 1) * chunk < rows ? (i + 1) * chunk : rows; }
};

std::vector<float> tiled(const std::vector<float>& values, int64_t width) {
    std::vector<float> result(width);
    for (int64_t j = 0; j < width; ++j) result[j] = values[j % values.size()];
    return result;
}

// partial [chunks, count, width] summed over chunks and joined rows: [count, channels]
std::vector<double> folded(const std::vector<double>& partial, const Matrix& m, int64_t count) {
    std::vector<double> result(count * m.channels, 0.0);
    for (int64_t i = 0; i < m.chunks() * count; ++i)
        for (int64_t j = 0; j < m.width; ++j)
            result[i % count * m.channels + j % m.channels] += partial[i * m.width + j];
    return result;
}

// x * a + b is BatchNorm's output in units of the scale
struct Affine {
    std::vector<float> a, b, mean;

    Affine(const Matrix& m, const float* gamma, const float* beta, const float* means, const float* deviation,
           float step) {
        std::vector<float> factor(m.channels), shift(m.channels), center(means, means + m.channels);
        for (int64_t c = 0; c < m.channels; ++c) {
            factor[c] = gamma[c] * deviation[c] / step;
            shift[c] = beta[c] / step - means[c] * factor[c];
        }
        a = tiled(factor, m.width);
        b = tiled(shift, m.width);
        mean = tiled(center, m.width);
    }
};

template <class T>
void moments(const T* x, const Matrix& m, const float* origin, int64_t first, int64_t last, double* sums) {
    const int64_t width = m.width;
    std::vector<float> near(2 * width);
    float* one = near.data();
    float* two = one + width;
    for (int64_t start = first; start < last; start += kRows) {
        const int64_t stop = start + kRows < last ? start + kRows : last;
        for (int64_t j = 0; j < 2 * width; ++j) one[j] = 0.0f;
        int64_t r = start;
        for (; r + 4 <= stop; r += 4) {
            const T* __restrict p = x + r * width;
#pragma omp simd
            for (int64_t j = 0; j < width; ++j) {
                const float d0 = load(p + j) - origin[j], d1 = load(p + width + j) - origin[j];
                const float d2 = load(p + 2 * width + j) - origin[j], d3 = load(p + 3 * width + j) - origin[j];
                one[j] += (d0 + d1) + (d2 + d3);
                two[j] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3);
            }
        }
        for (; r < stop; ++r) {
            const T* __restrict p = x + r * width;
#pragma omp simd
            for (int64_t j = 0; j < width; ++j) {
                const float d = load(p + j) - origin[j];
                one[j] += d;
                two[j] += d * d;
            }
        }
        for (int64_t j = 0; j < 2 * width; ++j) sums[j] += one[j];
    }
}

template <class T>
void normed_forward(const T* u, T* y, int64_t rows, int64_t channels, const float* gamma, const float* beta,
                    float* running_mean, float* running_variance, float momentum, float eps, float step, float low,
                    float high, int mode, float* mean, float* deviation, int threads) {
    const Matrix m(rows, channels);
    // distances to the mean of the first rows: that of a channel may be far larger than its spread
    std::vector<float> origin(channels, 0.0f);
    const int64_t few = rows < kRows ? rows : kRows;
    for (int64_t r = 0; r < few; ++r)
        for (int64_t c = 0; c < channels; ++c) origin[c] += load(u + r * channels + c) / few;
    const std::vector<float> origins = tiled(origin, m.width);
    std::vector<double> partial(m.chunks() * 2 * m.width, 0.0);
#pragma omp parallel for num_threads(threads)
    for (int64_t i = 0; i < m.chunks(); ++i)
        moments(u, m, origins.data(), i * m.chunk, m.end(i), partial.data() + i * 2 * m.width);
    const std::vector<double> sums = folded(partial, m, 2);
    const double count = static_cast<double>(rows);
    for (int64_t c = 0; c < channels; ++c) {
        const double distance = sums[c] / count;
        double variance = sums[channels + c] / count - distance * distance;
        variance = variance < 0.0 ? 0.0 : variance;
        mean[c] = static_cast<float>(origin[c] + distance);
        deviation[c] = static_cast<float>(1.0 / std::sqrt(variance + eps));
        const double unbiased = rows > 1 ? variance * (count / (count - 1.0)) : variance;
        running_mean[c] = static_cast<float>((1.0 - momentum) * running_mean[c] + momentum * mean[c]);
        running_variance[c] = static_cast<float>((1.0 - momentum) * running_variance[c] + momentum * unbiased);
    }
    const Affine affine(m, gamma, beta, mean, deviation, step);
    const float* __restrict a = affine.a.data();
    const float* __restrict b = affine.b.data();
    dispatch(mode, [&](auto constant) {
        constexpr Mode kMode = decltype(constant)::value;
#pragma omp parallel for num_threads(threads)
        for (int64_t i = 0; i < m.chunks(); ++i)
            for (int64_t r = i * m.chunk; r < m.end(i); ++r) {
                const T* __restrict source = u + r * m.width;
                T* __restrict target = y + r * m.width;
#pragma omp simd
                for (int64_t j = 0; j < m.width; ++j)
                    store(target + j, code_of<kMode>(load(source + j) * a[j] + b[j], low, high) * step);
            }
    });
}

// sums of each column over the rows: p, p (u - mean), slope, outside
template <class T, Mode mode>
void slopes(const T* u, const T* g, const Matrix& m, const Affine& affine, float low, float high, int64_t first,
            int64_t last, double* sums) {
    const int64_t width = m.width;
    std::vector<float> near(4 * width);
    float* passed = near.data();
    float* product = passed + width;
    float* slope = product + width;
    float* outside = slope + width;
    const float* __restrict a = affine.a.data();
    const float* __restrict b = affine.b.data();
    const float* __restrict mean = affine.mean.data();
    for (int64_t start = first; start < last; start += kRows) {
        const int64_t stop = start + kRows < last ? start + kRows : last;
        for (int64_t j = 0; j < 4 * width; ++j) passed[j] = 0.0f;
        for (int64_t r = start; r < stop; ++r) {
            const T* __restrict source = u + r * width;
            const T* __restrict gradient = g + r * width;
#pragma omp simd
            for (int64_t j = 0; j < width; ++j) {
                const float x = load(source + j);
                const Share one = share<mode>(x * a[j] + b[j], load(gradient + j), low, high);
                passed[j] += one.p;
                product[j] += one.p * (x - mean[j]);
                slope[j] += one.slope;
                outside[j] += one.outside;
            }
        }
        for (int64_t j = 0; j < 4 * width; ++j) sums[j] += passed[j];
    }
}

template <class T>
void normed_backward(const T* u, const T* g, T* du, int64_t rows, int64_t channels, const float* gamma,
                     const float* beta, const float* mean, const float* deviation, float step, float low, float high,
                     int mode, float* dgamma, float* dbeta, float* range, int threads) {
    const Matrix m(rows, channels);
    const Affine affine(m, gamma, beta, mean, deviation, step);
    std::vector<double> partial(m.chunks() * 4 * m.width, 0.0);
#pragma omp parallel for num_threads(threads)
    for (int64_t i = 0; i < m.chunks(); ++i) {
        double* sums = partial.data() + i * 4 * m.width;
        dispatch(mode, [&](auto constant) {
            slopes<T, decltype(constant)::value>(u, g, m, affine, low, high, i * m.chunk, m.end(i), sums);
        });
    }
    const std::vector<double> sums = folded(partial, m, 4);
    std::vector<float> factor(channels), slant(channels), shift(channels);
    double slope = 0.0, outside = 0.0;
    for (int64_t c = 0; c < channels; ++c) {
        const double passed = sums[c], product = sums[channels + c] * deviation[c];
        slope += sums[2 * channels + c];
        outside += sums[3 * channels + c];
        dgamma[c] = static_cast<float>(product);
        dbeta[c] = static_cast<float>(passed);
        const double gain = static_cast<double>(gamma[c]) * deviation[c];
        factor[c] = static_cast<float>(gain);
        slant[c] = static_cast<float>(-gain * deviation[c] * product / rows);
        shift[c] = static_cast<float>(-gain * passed / rows);
    }
    range[0] = static_cast<float>(slope);
    range[1] = static_cast<float>(outside);
    const std::vector<float> factors = tiled(factor, m.width), slants = tiled(slant, m.width),
                             shifts = tiled(shift, m.width);
    const float* __restrict a = affine.a.data();
    const float* __restrict b = affine.b.data();
    const float* __restrict center = affine.mean.data();
    const float* __restrict k = factors.data();
    const float* __restrict l = slants.data();
    const float* __restrict n = shifts.data();
#pragma omp parallel for num_threads(threads)
    for (int64_t i = 0; i < m.chunks(); ++i)
        for (int64_t r = i * m.chunk; r < m.end(i); ++r) {
            const T* __restrict source = u + r * m.width;
            const T* __restrict gradient = g + r * m.width;
            T* __restrict target = du + r * m.width;
#pragma omp simd
            for (int64_t j = 0; j < m.width; ++j) {
                const float x = load(source + j), d = load(gradient + j);
                const float real = x * a[j] + b[j];
                const float p = (real > low) & (real < high) ? d : 0.0f;
                store(target + j, k[j] * p + (l[j] * (x - center[j]) + n[j]));
            }
        }
}

// rows of one scale each, cut into blocks
struct Blocks {
    int64_t width, per_row, count;

    Blocks(int64_t rows, int64_t width_) : width(width_), per_row((width_ + kBlock - 1) / kBlock) {
        count = rows * per_row;
    }
    int64_t row(int64_t i) const { return i / per_row; }
    int64_t first(int64_t i) const { return row(i) * width + i % per_row * kBlock; }
    int64_t size(int64_t i) const {
        const int64_t left = width - i % per_row * kBlock;
        return left < kBlock ? left : kBlock;
    }
};

template <class T>
void range_forward(const T* x, T* y, int64_t rows, int64_t width, const float* scale, float low, float high,
                   int threads) {
    const Blocks blocks(rows, width);
#pragma omp parallel for num_threads(threads)
    for (int64_t i = 0; i < blocks.count; ++i) {
        const float step = scale[blocks.row(i)], inverse = 1.0f / step;
        const T* __restrict source = x + blocks.first(i);
        T* __restrict target = y + blocks.first(i);
#pragma omp simd
        for (int64_t j = 0; j < blocks.size(i); ++j)
            store(target + j, clamped(std::rint(load(source + j) * inverse), low, high) * step);
    }
}

template <class T, Mode mode>
void range_block(const T* __restrict x, const T* __restrict g, T* __restrict dx, int64_t size, float inverse, float low,
                 float high, double* sums) {
    float slope[kLanes] = {}, outside[kLanes] = {};
    for (int64_t start = 0; start < size; start += kLanes) {
        const int64_t lanes = size - start < kLanes ? size - start : kLanes;
#pragma omp simd
        for (int64_t l = 0; l < lanes; ++l) {
            const Share one = share<mode>(load(x + start + l) * inverse, load(g + start + l), low, high);
            store(dx + start + l, one.p);
            slope[l] += one.slope;
            outside[l] += one.outside;
        }
    }
    sums[0] = sums[1] = 0.0;
    for (int64_t l = 0; l < kLanes; ++l) {
        sums[0] += slope[l];
        sums[1] += outside[l];
    }
}

template <class T>
void range_backward(const T* x, const T* g, T* dx, int64_t rows, int64_t width, const float* scale, float low,
                    float high, int mode, float* range, int threads) {
    const Blocks blocks(rows, width);
    std::vector<double> partial(2 * blocks.count);
#pragma omp parallel for num_threads(threads)
    for (int64_t i = 0; i < blocks.count; ++i) {
        const float inverse = 1.0f / scale[blocks.row(i)];
        const int64_t at = blocks.first(i), size = blocks.size(i);
        dispatch(mode, [&](auto constant) {
            range_block<T, decltype(constant)::value>(x + at, g + at, dx + at, size, inverse, low, high,
                                                      partial.data() + 2 * i);
        });
    }
    std::vector<double> sums(2 * rows, 0.0);
    for (int64_t i = 0; i < blocks.count; ++i)
        for (int64_t k = 0; k < 2; ++k) sums[2 * blocks.row(i) + k] += partial[2 * i + k];
    for (int64_t i = 0; i < 2 * rows; ++i) range[i] = static_cast<float>(sums[i]);
}

}  // namespace

#ifdef _WIN32
#define EXPORT extern "C" __declspec(dllexport)
#else
#define EXPORT extern "C"
#endif

#define EXPORT_FOR(name, T)                                                                                          \
    EXPORT void normed_forward_##name(                                                                               \
        const T* u, T* y, int64_t rows, int64_t channels, const float* gamma, const float* beta,                     \
        float* running_mean, float* running_variance, float momentum, float eps, float step, float low, float high,  \
        int mode, float* mean, float* deviation, int threads) {                                                      \
        normed_forward(u, y, rows, channels, gamma, beta, running_mean, running_variance, momentum, eps, step, low,  \
                       high, mode, mean, deviation, threads);                                                        \
    }                                                                                                                \
    EXPORT void normed_backward_##name(                                                                              \
        const T* u, const T* g, T* du, int64_t rows, int64_t channels, const float* gamma, const float* beta,        \
        const float* mean, const float* deviation, float step, float low, float high, int mode, float* dgamma,       \
        float* dbeta, float* range, int threads) {                                                                   \
        normed_backward(u, g, du, rows, channels, gamma, beta, mean, deviation, step, low, high, mode, dgamma,       \
                        dbeta, range, threads);                                                                      \
    }                                                                                                                \
    EXPORT void range_forward_##name(const T* x, T* y, int64_t rows, int64_t width, const float* scale, float low,   \
                                     float high, int threads) {                                                      \
        range_forward(x, y, rows, width, scale, low, high, threads);                                                 \
    }                                                                                                                \
    EXPORT void range_backward_##name(const T* x, const T* g, T* dx, int64_t rows, int64_t width,                    \
                                      const float* scale, float low, float high, int mode, float* range,             \
                                      int threads) {                                                                 \
        range_backward(x, g, dx, rows, width, scale, low, high, mode, range, threads);                               \
    }                                                                                                                \
    EXPORT void depthwise_forward_##name(const T* x, const float* weight, const float* bias, T* y,                   \
                                         const int64_t* shape, int threads) {                                        \
        depthwise_forward(x, weight, bias, y, Shape(shape), threads);                                                \
    }                                                                                                                \
    EXPORT void depthwise_backward_##name(const T* x, const T* g, const float* weight, T* dx, float* dweight,        \
                                          float* dbias, const int64_t* shape, int threads) {                         \
        depthwise_backward(x, g, weight, dx, dweight, dbias, Shape(shape), threads);                                 \
    }

EXPORT_FOR(float32, float)
EXPORT_FOR(bfloat16, bfloat)
