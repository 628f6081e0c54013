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

// To channels, each of `size` elements side by side.
template <typename T>
__device__ void add_bias(T* xs, const T* bias, int elements, int channels, int size) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < elements; i += gridDim.x * blockDim.x) {
        put(xs, i, get(xs, i) + get(bias, i / size % channels));
    }
}

// The sum of each row, by a block.
template <typename T>
__device__ void row_sums(const T* xs, float* sums, int width) {
    xs += (size_t)blockIdx.x * width;
    float sum = 0.0f;
    for (int i = threadIdx.x; i < width; i += blockDim.x) sum += get(xs, i);
    sum = block_sum(sum);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
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

// Mean and reciprocal standard deviation of rows, which are the groups of channels of images: a block each.
template <typename T>
__device__ void group_moments(const T* xs, float* moments, int width, float eps) {
    xs += (size_t)blockIdx.x * width;
    float sum = 0.0f, squares = 0.0f;
    for (int i = threadIdx.x; i < width; i += blockDim.x) sum += get(xs, i);
    float mean = block_sum(sum) / width;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        float x = get(xs, i) - mean;
        squares += x * x;
    }
    squares = block_sum(squares) / width;
    if (threadIdx.x == 0) {
        moments[2 * (size_t)blockIdx.x] = mean;
        moments[2 * (size_t)blockIdx.x + 1] = 1.0f / sqrtf(squares + eps);
    }
}

// Images [images, channels, pixels]; `per_group` channels are a group.
template <typename T>
__device__ void group_norm_forward(const T* xs, const float* moments, const T* weight, const T* bias, T* ys, int elements, int pixels,
                                   int channels, int per_group, int kind) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < elements; i += gridDim.x * blockDim.x) {
        int row = i / pixels, c = row % channels;
        const float* moment = moments + 2 * (size_t)(row / per_group);
        put(ys, i, activate(kind, (get(xs, i) - moment[0]) * moment[1] * get(weight, c) + get(bias, c)));
    }
}

// For each image and channel, a block each, the sums over pixels of the gradient of what the activation is given, times the normed pixel
// and alone: [images, channels] each.
template <typename T>
__device__ void group_norm_sums(const T* xs, const float* moments, const T* weight, const T* bias, const T* d_ys, float* products,
                                float* sums, int pixels, int channels, int per_group, int kind) {
    int row = blockIdx.x, c = row % channels;
    const float* moment = moments + 2 * (size_t)(row / per_group);
    float w = get(weight, c), b = get(bias, c), product = 0.0f, sum = 0.0f;
    for (int pixel = threadIdx.x; pixel < pixels; pixel += blockDim.x) {
        size_t i = (size_t)row * pixels + pixel;
        float normed = (get(xs, i) - moment[0]) * moment[1];
        float d = get(d_ys, i) * slope(kind, normed * w + b);
        product += d * normed;
        sum += d;
    }
    product = block_sum(product);
    sum = block_sum(sum);
    if (threadIdx.x == 0) {
        products[row] = product;
        sums[row] = sum;
    }
}

// `means`, [images, groups] each, are of the gradient of normed pixels, times these and alone.
template <typename T>
__device__ void group_norm_backward(const T* xs, const float* moments, const T* weight, const T* bias, const T* d_ys,
                                    const float* mean_products, const float* means, T* d_xs, int elements, int pixels, int channels,
                                    int per_group, int kind) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < elements; i += gridDim.x * blockDim.x) {
        int row = i / pixels, c = row % channels, group = row / per_group;
        float factor = moments[2 * (size_t)group + 1], w = get(weight, c);
        float normed = (get(xs, i) - moments[2 * (size_t)group]) * factor;
        float d = get(d_ys, i) * slope(kind, normed * w + get(bias, c)) * w;
        put(d_xs, i, factor * (d - means[group] - normed * mean_products[group]));
    }
}

// What a kernel of kernel × kernel pixels sees of images [images, channels, in_height, in_width], zero outside, at each of the places that
// it comes to, as columns: [images, channels · kernel · kernel, height · width]. A thread for each place, in y channels, in z images.
template <typename T>
__device__ void image_to_columns(const T* xs, T* columns, int in_height, int in_width, int height, int width, int kernel, int stride,
                                 int padding) {
    int place = blockIdx.x * blockDim.x + threadIdx.x, places = height * width;
    if (place >= places) return;
    size_t plane = (size_t)blockIdx.z * gridDim.y + blockIdx.y;
    xs += plane * in_height * in_width;
    columns += plane * kernel * kernel * places + place;
    int x = place % width * stride - padding, y = place / width * stride - padding;
    for (int dy = 0; dy < kernel; dy++) {
        for (int dx = 0; dx < kernel; dx++) {
            bool inside = x + dx >= 0 && x + dx < in_width && y + dy >= 0 && y + dy < in_height;
            put(columns, 0, inside ? get(xs, (size_t)(y + dy) * in_width + x + dx) : 0.0f);
            columns += places;
        }
    }
}

// The sums of all that image_to_columns took from each pixel. A thread for each pixel, in y channels, in z images.
template <typename T>
__device__ void columns_to_image(const T* columns, T* xs, int in_height, int in_width, int height, int width, int kernel, int stride,
                                 int padding) {
    int pixel = blockIdx.x * blockDim.x + threadIdx.x, places = height * width;
    if (pixel >= in_height * in_width) return;
    size_t plane = (size_t)blockIdx.z * gridDim.y + blockIdx.y;
    columns += plane * kernel * kernel * places;
    int x = pixel % in_width + padding, y = pixel / in_width + padding;
    float sum = 0.0f;
    for (int dy = 0; dy < kernel; dy++) {
        for (int dx = 0; dx < kernel; dx++) {
            int from_x = x - dx, from_y = y - dy;
            bool seen = from_x >= 0 && from_y >= 0 && from_x % stride == 0 && from_y % stride == 0;
            from_x /= stride;
            from_y /= stride;
            if (seen && from_x < width && from_y < height) sum += get(columns, (size_t)from_y * width + from_x);
            columns += places;
        }
    }
    put(xs, plane * in_height * in_width + pixel, sum);
}

// Planes of `height` × `width` become twice as high and wide.
template <typename T>
__device__ void upsample_forward(const T* xs, T* ys, int elements, int height, int width) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < elements; i += gridDim.x * blockDim.x) {
        int x = i % (2 * width), y = i / (2 * width) % (2 * height), plane = i / (2 * width) / (2 * height);
        ys[i] = xs[((size_t)plane * height + y / 2) * width + x / 2];
    }
}

template <typename T>
__device__ void upsample_backward(const T* d_ys, T* d_xs, int elements, int height, int width) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < elements; i += gridDim.x * blockDim.x) {
        int x = i % width, y = i / width % height, plane = i / width / height, row = 2 * width;
        size_t at = ((size_t)plane * 2 * height + 2 * y) * row + 2 * x;
        put(d_xs, i, get(d_ys, at) + get(d_ys, at + 1) + get(d_ys, at + row) + get(d_ys, at + row + 1));
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

// A kernel for a dtype; its parameters, and the same as arguments, are in brackets.
#define NAMED(name, T, suffix, parameters, arguments) \
    extern "C" __global__ void name##_##suffix parameters { name arguments; }

#define FOR(T, suffix) \
    NAMED(norm_backward, T, suffix, (const T* xs, const float* scale, const T* d_ys, T* d_xs, float* moments, int rows, int width, int \
              group, float eps, float more, int centred), (xs, scale, d_ys, d_xs, moments, rows, width, group, eps, more, centred)) \
    NAMED(norm_columns, T, suffix, (const T* xs, const T* d_ys, const float* moments, float* d_scale, float* d_shift, int rows, int \
              width, int group), (xs, d_ys, moments, d_scale, d_shift, rows, width, group)) \
    NAMED(column_sums, T, suffix, (const T* xs, const T* ys, float* sums, int rows, int width, int group), (xs, ys, sums, rows, width, \
              group)) \
    NAMED(row_sums, T, suffix, (const T* xs, float* sums, int width), (xs, sums, width)) \
    NAMED(gated, T, suffix, (const T* xs, const T* gate, const T* ys, T* out, int elements, int width, int group), (xs, gate, ys, out, \
              elements, width, group)) \
    NAMED(add_bias, T, suffix, (T* xs, const T* bias, int elements, int channels, int size), (xs, bias, elements, channels, size)) \
    NAMED(activation_forward, T, suffix, (const T* xs, T* ys, int elements, int kind), (xs, ys, elements, kind)) \
    NAMED(activation_backward, T, suffix, (const T* xs, const T* d_ys, T* d_xs, int elements, int kind), (xs, d_ys, d_xs, elements, \
              kind)) \
    NAMED(softmax_forward, T, suffix, (const T* scores, const float* bias, T* weights, int rows, int m, int heads, int n, int \
              batch_stride, int head_stride, int query_stride, float scale), (scores, bias, weights, rows, m, heads, n, batch_stride, \
              head_stride, query_stride, scale)) \
    NAMED(softmax_backward, T, suffix, (const T* weights, const T* d_weights, T* d_scores, int rows, int m, float scale), (weights, \
              d_weights, d_scores, rows, m, scale)) \
    NAMED(move_heads, T, suffix, (T* tokens, T* split, int elements, int n, int heads, int size, int stride, int back), (tokens, \
              split, elements, n, heads, size, stride, back)) \
    NAMED(group_moments, T, suffix, (const T* xs, float* moments, int width, float eps), (xs, moments, width, eps)) \
    NAMED(group_norm_forward, T, suffix, (const T* xs, const float* moments, const T* weight, const T* bias, T* ys, int elements, int \
              pixels, int channels, int per_group, int kind), (xs, moments, weight, bias, ys, elements, pixels, channels, per_group, \
              kind)) \
    NAMED(group_norm_sums, T, suffix, (const T* xs, const float* moments, const T* weight, const T* bias, const T* d_ys, float* \
              products, float* sums, int pixels, int channels, int per_group, int kind), (xs, moments, weight, bias, d_ys, products, \
              sums, pixels, channels, per_group, kind)) \
    NAMED(group_norm_backward, T, suffix, (const T* xs, const float* moments, const T* weight, const T* bias, const T* d_ys, const \
              float* mean_products, const float* means, T* d_xs, int elements, int pixels, int channels, int per_group, int kind), \
              (xs, moments, weight, bias, d_ys, mean_products, means, d_xs, elements, pixels, channels, per_group, kind)) \
    NAMED(image_to_columns, T, suffix, (const T* xs, T* columns, int in_height, int in_width, int height, int width, int kernel, int \
              stride, int padding), (xs, columns, in_height, in_width, height, width, kernel, stride, padding)) \
    NAMED(columns_to_image, T, suffix, (const T* columns, T* xs, int in_height, int in_width, int height, int width, int kernel, int \
              stride, int padding), (columns, xs, in_height, in_width, height, width, kernel, stride, padding)) \
    NAMED(upsample_forward, T, suffix, (const T* xs, T* ys, int elements, int height, int width), (xs, ys, elements, height, width)) \
    NAMED(upsample_backward, T, suffix, (const T* d_ys, T* d_xs, int elements, int height, int width), (d_ys, d_xs, elements, height, \
              width))

FOR(float, f32)
FOR(bf16, bf16)

// The same from one dtype to another.
#define NORM_FORWARD(T, U, suffix) \
    extern "C" __global__ void norm_forward_##suffix(const T* xs, const float* scale, const float* shift, U* ys, int rows, int width, \
                                                     int group, float eps, float more, int centred) { \
        norm_forward(xs, scale, shift, ys, rows, width, group, eps, more, centred); \
    }

NORM_FORWARD(float, float, f32_f32)
NORM_FORWARD(float, bf16, f32_bf16)
NORM_FORWARD(bf16, bf16, bf16_bf16)
NORM_FORWARD(bf16, float, bf16_f32)
