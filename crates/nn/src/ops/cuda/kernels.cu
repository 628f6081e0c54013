// Kernels of the operations whose plain composition would walk through memory many times. They sum in f32, in an order that is always the
// same. NVRTC compiles this text for the GPU at hand when a program first needs it, so nothing is included.

struct bf16 {
    unsigned short bits;
};

__device__ inline float get(const float* xs, size_t i) { return xs[i]; }

__device__ inline float get(const bf16* xs, size_t i) { return __uint_as_float((unsigned)xs[i].bits << 16); }

__device__ inline void put(float* xs, size_t i, float x) { xs[i] = x; }

// To the nearest, ties to even.
__device__ inline void put(bf16* xs, size_t i, float x) {
    unsigned bits = __float_as_uint(x);
    bool is_nan = (bits & 0x7fffffff) > 0x7f800000;
    xs[i].bits = is_nan ? 0x7fc0 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

// Every thread of a warp gets the sum.
__device__ inline float warp_sum(float x) {
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffff, x, step);
    return x;
}

__device__ inline float warp_max(float x) {
    for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, step));
    return x;
}

// Every thread of a block of 32·n threads in one dimension gets the sum.
__device__ inline float block_sum(float x) {
    __shared__ float sums[32];
    x = warp_sum(x);
    // What an earlier call left there has been read.
    __syncthreads();
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = x;
    __syncthreads();
    return warp_sum(threadIdx.x % 32 < blockDim.x / 32 ? sums[threadIdx.x % 32] : 0.0f);
}

// The threads of a block whose x is the same, 32 × 8 of them, add up; the sum is good where y is 0.
__device__ inline float column_sum(float x) {
    __shared__ float sums[8][32];
    __syncthreads();
    sums[threadIdx.y][threadIdx.x] = x;
    __syncthreads();
    float sum = 0.0f;
    if (threadIdx.y == 0) {
        for (int y = 0; y < 8; y++) sum += sums[y][threadIdx.x];
    }
    return sum;
}

enum { GELU_TANH = 1, SILU = 2 };

__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

__device__ inline float activate(int kind, float x) {
    if (kind == SILU) return x * sigmoid(x);
    if (kind == GELU_TANH) return 0.5f * x * (1.0f + tanhf(0.7978845608f * (x + 0.044715f * x * x * x)));
    return x;
}

__device__ inline float slope(int kind, float x) {
    if (kind == SILU) {
        float s = sigmoid(x);
        return s * (1.0f + x * (1.0f - s));
    }
    if (kind == GELU_TANH) {
        float t = tanhf(0.7978845608f * (x + 0.044715f * x * x * x));
        return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * 0.7978845608f * (1.0f + 0.134145f * x * x);
    }
    return 1.0f;
}

// Mean and reciprocal standard deviation of a row, by a warp; without centring the mean is taken as 0.
template <typename T>
__device__ inline void row_moments(const T* row, int width, float eps, int centred, float* mean, float* scale) {
    float sum = 0.0f, squares = 0.0f;
    if (centred) {
        for (int c = threadIdx.x; c < width; c += 32) sum += get(row, c);
        sum = warp_sum(sum) / width;
    }
    for (int c = threadIdx.x; c < width; c += 32) {
        float x = get(row, c) - sum;
        squares += x * x;
    }
    *mean = sum;
    *scale = 1.0f / sqrtf(warp_sum(squares) / width + eps);
}

// A warp a row: the norm, times (scale + more), plus shift where there is one. Each group of rows has its own scale and shift.
template <typename T, typename U>
__device__ void norm_forward(const T* xs, const float* scale, const float* shift, U* ys, int rows, int width, int group, float eps,
                             float more, int centred) {
    int row = blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) return;
    xs += (size_t)row * width;
    ys += (size_t)row * width;
    size_t affine = (size_t)(row / group) * width;
    float mean, factor;
    row_moments(xs, width, eps, centred, &mean, &factor);
    for (int c = threadIdx.x; c < width; c += 32) {
        float y = (get(xs, c) - mean) * factor * (scale[affine + c] + more);
        put(ys, c, shift ? y + shift[affine + c] : y);
    }
}

// The gradient of rows, and the moments of each, [rows, 2], for norm_columns.
template <typename T>
__device__ void norm_backward(const T* xs, const float* scale, const T* d_ys, T* d_xs, float* moments, int rows, int width, int group,
                              float eps, float more, int centred) {
    int row = blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) return;
    xs += (size_t)row * width;
    d_ys += (size_t)row * width;
    d_xs += (size_t)row * width;
    scale += (size_t)(row / group) * width;
    float mean, factor, sum = 0.0f, projection = 0.0f;
    row_moments(xs, width, eps, centred, &mean, &factor);
    for (int c = threadIdx.x; c < width; c += 32) {
        float d = get(d_ys, c) * (scale[c] + more);
        sum += d;
        projection += d * (get(xs, c) - mean) * factor;
    }
    sum = centred ? warp_sum(sum) / width : 0.0f;
    projection = warp_sum(projection) / width;
    for (int c = threadIdx.x; c < width; c += 32) {
        float d = get(d_ys, c) * (scale[c] + more);
        put(d_xs, c, factor * (d - sum - (get(xs, c) - mean) * factor * projection));
    }
    if (threadIdx.x == 0) {
        moments[2 * (size_t)row] = mean;
        moments[2 * (size_t)row + 1] = factor;
    }
}

// For each group of rows the sums over them of d_ys · normed and of d_ys: [rows / group, width] each.
template <typename T>
__device__ void norm_columns(const T* xs, const T* d_ys, const float* moments, float* d_scale, float* d_shift, int rows, int width,
                             int group) {
    int c = blockIdx.x * 32 + threadIdx.x;
    float scale = 0.0f, shift = 0.0f;
    int end = min(rows, (int)(blockIdx.y + 1) * group);
    for (int row = blockIdx.y * group + threadIdx.y; row < end && c < width; row += 8) {
        float d = get(d_ys, (size_t)row * width + c);
        scale += d * (get(xs, (size_t)row * width + c) - moments[2 * (size_t)row]) * moments[2 * (size_t)row + 1];
        shift += d;
    }
    scale = column_sum(scale);
    shift = column_sum(shift);
    if (threadIdx.y == 0 && c < width) {
        d_scale[(size_t)blockIdx.y * width + c] = scale;
        d_shift[(size_t)blockIdx.y * width + c] = shift;
    }
}

// For each group of rows the sums over them of xs, or of xs · ys where there are such: [rows / group rounded up, width].
template <typename T>
__device__ void column_sums(const T* xs, const T* ys, float* sums, int rows, int width, int group) {
    int c = blockIdx.x * 32 + threadIdx.x;
    float sum = 0.0f;
    int end = min(rows, (int)(blockIdx.y + 1) * group);
    for (int row = blockIdx.y * group + threadIdx.y; row < end && c < width; row += 8) {
        float x = get(xs, (size_t)row * width + c);
        sum += ys ? x * get(ys, (size_t)row * width + c) : x;
    }
    sum = column_sum(sum);
    if (threadIdx.y == 0 && c < width) sums[(size_t)blockIdx.y * width + c] = sum;
}

// xs (zero where there are none) + gate · ys; each group of rows has its own gate.
template <typename T>
__device__ void gated(const T* xs, const T* gate, const T* ys, T* out, int elements, int width, int group) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < elements; i += gridDim.x * blockDim.x) {
        int row = i / width;
        float y = get(gate, (size_t)(row / group) * width + (i - row * width)) * get(ys, i);
        put(out, i, xs ? get(xs, i) + y : y);
    }
}

template <typename T>
__device__ void add_bias(T* xs, const T* bias, int elements, int width) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < elements; i += gridDim.x * blockDim.x) {
        put(xs, i, get(xs, i) + get(bias, i % width));
    }
}

template <typename T>
__device__ void activation_forward(const T* xs, T* ys, int elements, int kind) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < elements; i += gridDim.x * blockDim.x) {
        put(ys, i, activate(kind, get(xs, i)));
    }
}

template <typename T>
__device__ void activation_backward(const T* xs, const T* d_ys, T* d_xs, int elements, int kind) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < elements; i += gridDim.x * blockDim.x) {
        put(d_xs, i, slope(kind, get(xs, i)) * get(d_ys, i));
    }
}

// A warp a row of scores [batch, heads, n, m]: softmax(scale · scores + bias), the bias by its strides, 0 where it repeats.
template <typename T>
__device__ void softmax_forward(const T* scores, const float* bias, T* weights, int rows, int m, int heads, int n, int batch_stride,
                                int head_stride, int query_stride, float scale) {
    int row = blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) return;
    scores += (size_t)row * m;
    weights += (size_t)row * m;
    if (bias) {
        int image = row / (heads * n), head = row / n % heads, query = row % n;
        bias += (size_t)image * batch_stride + (size_t)head * head_stride + (size_t)query * query_stride;
    }
    // Less than any score.
    float largest = __int_as_float(0xff800000), sum = 0.0f;
    for (int c = threadIdx.x; c < m; c += 32) {
        largest = fmaxf(largest, get(scores, c) * scale + (bias ? bias[c] : 0.0f));
    }
    largest = warp_max(largest);
    for (int c = threadIdx.x; c < m; c += 32) sum += expf(get(scores, c) * scale + (bias ? bias[c] : 0.0f) - largest);
    sum = 1.0f / warp_sum(sum);
    for (int c = threadIdx.x; c < m; c += 32) {
        put(weights, c, expf(get(scores, c) * scale + (bias ? bias[c] : 0.0f) - largest) * sum);
    }
}

// The gradient of the scores before they were scaled.
template <typename T>
__device__ void softmax_backward(const T* weights, const T* d_weights, T* d_scores, int rows, int m, float scale) {
    int row = blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) return;
    weights += (size_t)row * m;
    d_weights += (size_t)row * m;
    d_scores += (size_t)row * m;
    float sum = 0.0f;
    for (int c = threadIdx.x; c < m; c += 32) sum += get(weights, c) * get(d_weights, c);
    sum = warp_sum(sum);
    for (int c = threadIdx.x; c < m; c += 32) put(d_scores, c, get(weights, c) * (get(d_weights, c) - sum) * scale);
}

// Between tokens, whose rows are `stride` apart and have the heads side by side, and [batch, heads, n, size]: to heads, or back.
template <typename T>
__device__ void move_heads(T* tokens, T* split, int elements, int n, int heads, int size, int stride, int back) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < elements; i += gridDim.x * blockDim.x) {
        int c = i % size, token = i / size % n, head = i / size / n % heads, image = i / size / n / heads;
        size_t at = (size_t)(image * n + token) * stride + head * size + c;
        if (back) {
            tokens[at] = split[i];
        } else {
            split[i] = tokens[at];
        }
    }
}

// Mean and reciprocal standard deviation of each group of channels of images whose channels stand together: a block each, in x the
// groups, in y the images.
template <typename T>
__device__ void group_moments(const T* xs, float* moments, int pixels, int channels, int per_group, float eps) {
    xs += (size_t)blockIdx.y * pixels * channels + blockIdx.x * per_group;
    int elements = pixels * per_group;
    float sum = 0.0f, squares = 0.0f;
    for (int i = threadIdx.x; i < elements; i += blockDim.x) sum += get(xs, (size_t)(i / per_group) * channels + i % per_group);
    float mean = block_sum(sum) / elements;
    for (int i = threadIdx.x; i < elements; i += blockDim.x) {
        float x = get(xs, (size_t)(i / per_group) * channels + i % per_group) - mean;
        squares += x * x;
    }
    squares = block_sum(squares) / elements;
    if (threadIdx.x == 0) {
        size_t at = 2 * ((size_t)blockIdx.y * gridDim.x + blockIdx.x);
        moments[at] = mean;
        moments[at + 1] = 1.0f / sqrtf(squares + eps);
    }
}

template <typename T>
__device__ void group_norm_forward(const T* xs, const float* moments, const T* weight, const T* bias, T* ys, int elements, int pixels,
                                   int channels, int per_group, int kind) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < elements; i += gridDim.x * blockDim.x) {
        int c = i % channels, image = i / channels / pixels;
        const float* moment = moments + 2 * ((size_t)image * (channels / per_group) + c / per_group);
        put(ys, i, activate(kind, (get(xs, i) - moment[0]) * moment[1] * get(weight, c) + get(bias, c)));
    }
}

// For each image and channel sums over some of its pixels, `part` of them, of the gradient of what the activation is given, times the
// normed pixel and alone: [images, parts, channels] each. In x channels, in y parts, in z images.
template <typename T>
__device__ void group_norm_sums(const T* xs, const float* moments, const T* weight, const T* bias, const T* d_ys, float* products,
                                float* sums, int pixels, int channels, int per_group, int part, int kind) {
    int c = blockIdx.x * 32 + threadIdx.x, image = blockIdx.z;
    float product = 0.0f, sum = 0.0f;
    if (c < channels) {
        const float* moment = moments + 2 * ((size_t)image * (channels / per_group) + c / per_group);
        float w = get(weight, c), b = get(bias, c);
        int end = min(pixels, (int)(blockIdx.y + 1) * part);
        for (int pixel = blockIdx.y * part + threadIdx.y; pixel < end; pixel += 8) {
            size_t i = ((size_t)image * pixels + pixel) * channels + c;
            float normed = (get(xs, i) - moment[0]) * moment[1];
            float d = get(d_ys, i) * slope(kind, normed * w + b);
            product += d * normed;
            sum += d;
        }
    }
    product = column_sum(product);
    sum = column_sum(sum);
    if (threadIdx.y == 0 && c < channels) {
        size_t at = ((size_t)image * gridDim.y + blockIdx.y) * channels + c;
        products[at] = product;
        sums[at] = sum;
    }
}

// `means`, [images, groups] each, are of the gradient of normed pixels, times these and alone.
template <typename T>
__device__ void group_norm_backward(const T* xs, const float* moments, const T* weight, const T* bias, const T* d_ys,
                                    const float* mean_products, const float* means, T* d_xs, int elements, int pixels, int channels,
                                    int per_group, int kind) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < elements; i += gridDim.x * blockDim.x) {
        int c = i % channels, image = i / channels / pixels;
        size_t group = (size_t)image * (channels / per_group) + c / per_group;
        float factor = moments[2 * group + 1], w = get(weight, c);
        float normed = (get(xs, i) - moments[2 * group]) * factor;
        float d = get(d_ys, i) * slope(kind, normed * w + get(bias, c)) * w;
        put(d_xs, i, factor * (d - means[group] - normed * mean_products[group]));
    }
}

// What a kernel of kernel × kernel pixels sees at each place, as rows: [images · height · width, kernel, kernel, channels]. The image is
// `in_height` × `in_width`, zero outside. A row of threads makes a row.
template <typename T>
__device__ void image_to_columns(const T* xs, T* columns, int rows, int in_height, int in_width, int channels, int height, int width,
                                 int kernel, int stride, int padding) {
    int row = blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) return;
    int x = row % width * stride - padding, y = row / width % height * stride - padding, image = row / width / height;
    int depth = kernel * kernel * channels;
    columns += (size_t)row * depth;
    for (int i = threadIdx.x; i < depth; i += 32) {
        int c = i % channels, at_x = x + i / channels % kernel, at_y = y + i / channels / kernel;
        bool inside = at_x >= 0 && at_x < in_width && at_y >= 0 && at_y < in_height;
        put(columns, i, inside ? get(xs, (((size_t)image * in_height + at_y) * in_width + at_x) * channels + c) : 0.0f);
    }
}

// The sums of all that image_to_columns took from each pixel. A row of threads makes a pixel.
template <typename T>
__device__ void columns_to_image(const T* columns, T* xs, int in_rows, int in_height, int in_width, int channels, int height, int width,
                                 int kernel, int stride, int padding) {
    int row = blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= in_rows) return;
    int x = row % in_width + padding, y = row / in_width % in_height + padding, image = row / in_width / in_height;
    size_t depth = (size_t)kernel * kernel * channels;
    for (int c = threadIdx.x; c < channels; c += 32) {
        float sum = 0.0f;
        for (int i = 0; i < kernel * kernel; i++) {
            int from_x = x - i % kernel, from_y = y - i / kernel;
            if (from_x < 0 || from_y < 0 || from_x % stride || from_y % stride) continue;
            from_x /= stride;
            from_y /= stride;
            if (from_x >= width || from_y >= height) continue;
            sum += get(columns, (((size_t)image * height + from_y) * width + from_x) * depth + (size_t)i * channels + c);
        }
        put(xs, (size_t)row * channels + c, sum);
    }
}

// Images of `height` × `width` become twice as high and wide, channels last.
template <typename T>
__device__ void upsample_forward(const T* xs, T* ys, int elements, int height, int width, int channels) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < elements; i += gridDim.x * blockDim.x) {
        int c = i % channels, x = i / channels % (2 * width), y = i / channels / (2 * width) % (2 * height);
        int image = i / channels / (2 * width) / (2 * height);
        ys[i] = xs[(((size_t)image * height + y / 2) * width + x / 2) * channels + c];
    }
}

template <typename T>
__device__ void upsample_backward(const T* d_ys, T* d_xs, int elements, int height, int width, int channels) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < elements; i += gridDim.x * blockDim.x) {
        int c = i % channels, x = i / channels % width, y = i / channels / width % height, image = i / channels / width / height;
        size_t row = 2 * (size_t)width * channels;
        size_t at = ((size_t)image * 2 * height + 2 * y) * row + 2 * (size_t)x * channels + c;
        put(d_xs, i, get(d_ys, at) + get(d_ys, at + channels) + get(d_ys, at + row) + get(d_ys, at + row + channels));
    }
}

// One block: the sum of squares.
extern "C" __global__ void squares(const float* xs, float* sum, int elements) {
    float squares = 0.0f;
    for (int i = threadIdx.x; i < elements; i += blockDim.x) squares += xs[i] * xs[i];
    squares = block_sum(squares);
    if (threadIdx.x == 0) *sum = squares;
}

extern "C" __global__ void adamw(float* xs, const float* gradient, float* first, float* second, int elements, float kept, float rate,
                                 float beta1, float new1, float beta2, float new2, float eps, float root_correction) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < elements; i += gridDim.x * blockDim.x) {
        float g = gradient[i];
        float m = beta1 * first[i] + new1 * g, v = beta2 * second[i] + new2 * g * g;
        first[i] = m;
        second[i] = v;
        xs[i] = xs[i] * kept - rate * m / (sqrtf(v) * root_correction + eps);
    }
}

// Nesterov's momentum: what is remembered, and what is to be followed.
extern "C" __global__ void momentum(const float* gradient, float* first, float* out, int elements, float momentum) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < elements; i += gridDim.x * blockDim.x) {
        float g = gradient[i] * (1.0f - momentum);
        float m = first[i] * momentum + g;
        first[i] = m;
        out[i] = m * momentum + g;
    }
}

// xs becomes kept · xs + factor · ys.
extern "C" __global__ void combine(float* xs, const float* ys, int elements, float kept, float factor) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < elements; i += gridDim.x * blockDim.x) {
        xs[i] = kept * xs[i] + factor * ys[i];
    }
}

// xs goes the part `factor` of the way to ys; what is the same stays the same.
extern "C" __global__ void approach(float* xs, const float* ys, int elements, float factor) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < elements; i += gridDim.x * blockDim.x) {
        xs[i] += (ys[i] - xs[i]) * factor;
    }
}

#define NAMED_TO(name, T, U, suffix)                                                                                              \
    extern "C" __global__ void name##_##suffix(const T* xs, const float* scale, const float* shift, U* ys, int rows, int width,   \
                                               int group, float eps, float more, int centred) {                                  \
        name(xs, scale, shift, ys, rows, width, group, eps, more, centred);                                                       \
    }

NAMED_TO(norm_forward, float, float, f32_f32)
NAMED_TO(norm_forward, float, bf16, f32_bf16)
NAMED_TO(norm_forward, bf16, bf16, bf16_bf16)
NAMED_TO(norm_forward, bf16, float, bf16_f32)

#define NAMED(T, suffix)                                                                                                          \
    extern "C" __global__ void norm_backward_##suffix(const T* xs, const float* scale, const T* d_ys, T* d_xs, float* moments,    \
                                                      int rows, int width, int group, float eps, float more, int centred) {      \
        norm_backward(xs, scale, d_ys, d_xs, moments, rows, width, group, eps, more, centred);                                    \
    }                                                                                                                             \
    extern "C" __global__ void norm_columns_##suffix(const T* xs, const T* d_ys, const float* moments, float* d_scale,            \
                                                     float* d_shift, int rows, int width, int group) {                            \
        norm_columns(xs, d_ys, moments, d_scale, d_shift, rows, width, group);                                                    \
    }                                                                                                                             \
    extern "C" __global__ void column_sums_##suffix(const T* xs, const T* ys, float* sums, int rows, int width, int group) {      \
        column_sums(xs, ys, sums, rows, width, group);                                                                            \
    }                                                                                                                             \
    extern "C" __global__ void gated_##suffix(const T* xs, const T* gate, const T* ys, T* out, int elements, int width,           \
                                              int group) {                                                                        \
        gated(xs, gate, ys, out, elements, width, group);                                                                         \
    }                                                                                                                             \
    extern "C" __global__ void add_bias_##suffix(T* xs, const T* bias, int elements, int width) {                                 \
        add_bias(xs, bias, elements, width);                                                                                      \
    }                                                                                                                             \
    extern "C" __global__ void activation_forward_##suffix(const T* xs, T* ys, int elements, int kind) {                          \
        activation_forward(xs, ys, elements, kind);                                                                               \
    }                                                                                                                             \
    extern "C" __global__ void activation_backward_##suffix(const T* xs, const T* d_ys, T* d_xs, int elements, int kind) {        \
        activation_backward(xs, d_ys, d_xs, elements, kind);                                                                      \
    }                                                                                                                             \
    extern "C" __global__ void softmax_forward_##suffix(const T* scores, const float* bias, T* weights, int rows, int m,          \
                                                        int heads, int n, int batch_stride, int head_stride, int query_stride,    \
                                                        float scale) {                                                            \
        softmax_forward(scores, bias, weights, rows, m, heads, n, batch_stride, head_stride, query_stride, scale);                \
    }                                                                                                                             \
    extern "C" __global__ void softmax_backward_##suffix(const T* weights, const T* d_weights, T* d_scores, int rows, int m,      \
                                                         float scale) {                                                           \
        softmax_backward(weights, d_weights, d_scores, rows, m, scale);                                                           \
    }                                                                                                                             \
    extern "C" __global__ void move_heads_##suffix(T* tokens, T* split, int elements, int n, int heads, int size, int stride,     \
                                                   int back) {                                                                    \
        move_heads(tokens, split, elements, n, heads, size, stride, back);                                                        \
    }                                                                                                                             \
    extern "C" __global__ void group_moments_##suffix(const T* xs, float* moments, int pixels, int channels, int per_group,       \
                                                      float eps) {                                                                \
        group_moments(xs, moments, pixels, channels, per_group, eps);                                                             \
    }                                                                                                                             \
    extern "C" __global__ void group_norm_forward_##suffix(const T* xs, const float* moments, const T* weight, const T* bias,     \
                                                           T* ys, int elements, int pixels, int channels, int per_group,          \
                                                           int kind) {                                                            \
        group_norm_forward(xs, moments, weight, bias, ys, elements, pixels, channels, per_group, kind);                           \
    }                                                                                                                             \
    extern "C" __global__ void group_norm_sums_##suffix(const T* xs, const float* moments, const T* weight, const T* bias,        \
                                                        const T* d_ys, float* products, float* sums, int pixels, int channels,    \
                                                        int per_group, int part, int kind) {                                      \
        group_norm_sums(xs, moments, weight, bias, d_ys, products, sums, pixels, channels, per_group, part, kind);                \
    }                                                                                                                             \
    extern "C" __global__ void group_norm_backward_##suffix(                                                                      \
        const T* xs, const float* moments, const T* weight, const T* bias, const T* d_ys, const float* mean_products,             \
        const float* means, T* d_xs, int elements, int pixels, int channels, int per_group, int kind) {                           \
        group_norm_backward(xs, moments, weight, bias, d_ys, mean_products, means, d_xs, elements, pixels, channels, per_group,   \
                            kind);                                                                                                \
    }                                                                                                                             \
    extern "C" __global__ void image_to_columns_##suffix(const T* xs, T* columns, int rows, int in_height, int in_width,          \
                                                         int channels, int height, int width, int kernel, int stride,             \
                                                         int padding) {                                                           \
        image_to_columns(xs, columns, rows, in_height, in_width, channels, height, width, kernel, stride, padding);               \
    }                                                                                                                             \
    extern "C" __global__ void columns_to_image_##suffix(const T* columns, T* xs, int in_rows, int in_height, int in_width,       \
                                                         int channels, int height, int width, int kernel, int stride,             \
                                                         int padding) {                                                           \
        columns_to_image(columns, xs, in_rows, in_height, in_width, channels, height, width, kernel, stride, padding);            \
    }                                                                                                                             \
    extern "C" __global__ void upsample_forward_##suffix(const T* xs, T* ys, int elements, int height, int width,                 \
                                                         int channels) {                                                          \
        upsample_forward(xs, ys, elements, height, width, channels);                                                              \
    }                                                                                                                             \
    extern "C" __global__ void upsample_backward_##suffix(const T* d_ys, T* d_xs, int elements, int height, int width,            \
                                                          int channels) {                                                         \
        upsample_backward(d_ys, d_xs, elements, height, width, channels);                                                         \
    }

NAMED(float, f32)
NAMED(bf16, bf16)
