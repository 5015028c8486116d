//: if hidden
/* -- requantization ------------------------------------------------------------------------------------------------- */

struct scale {
//: if fixed
    uint32_t multiplier;
    uint32_t shift;
//: else
    float multiplier;
//: endif
    int32_t top;
};

static struct scale scale_of(const struct layer *layer, ${index_type} channel)
{
    struct scale scale;
    scale.multiplier = ${"POLICY_READ_32" if fixed else "POLICY_READ_FLOAT"}(layer->multiplier + channel);
//: if fixed
    scale.shift = POLICY_READ_8(layer->shift + channel);
//: endif
    scale.top = layer->top;
    return scale;
}

//: if fixed
/* round(sum multiplier 2^-(shift + 1)), half up, clamped to 0 .. top. */
#if defined(__AVR__)
/* Whole bytes of the shift are skipped: AVR shifts one bit at a time. */
static int32_t requantize(int32_t sum, struct scale scale)
{
    const uint8_t skipped = (uint8_t)(scale.shift / 8);
    uint8_t bytes[9] = {0}, i;
    uint64_t product;
    uint16_t rounded;
    if (sum <= 0) {
        return 0;
    }
    product = (uint64_t)(uint32_t)sum * scale.multiplier;
    memcpy(bytes, &product, 8);
    for (i = (uint8_t)(skipped + 2); i < 8; i++) {
        if (bytes[i] != 0) {
            return scale.top;
        }
    }
    rounded = (uint16_t)((bytes[skipped] | (uint16_t)bytes[skipped + 1] << 8) >> (scale.shift % 8));
    rounded = (uint16_t)((rounded + 1) >> 1);
    return rounded < scale.top ? rounded : scale.top;
}
#else
static int32_t requantize(int32_t sum, struct scale scale)
{
    const uint64_t product = (uint64_t)(uint32_t)sum * scale.multiplier;
    const uint32_t high = (uint32_t)(product >> 32), shift = scale.shift;
    uint32_t bits; /* product 2^-shift: in two halves, since processors of 32 bits shift 64 slowly */
    if (sum <= 0) {
        return 0;
    }
    if (shift >= 32) {
        bits = high >> (shift - 32);
    } else if (high >> shift != 0) {
        return scale.top;
    } else {
        bits = (uint32_t)product >> shift | high << 1 << (31 - shift);
    }
    bits = (bits >> 1) + (bits & 1);
    return bits < (uint32_t)scale.top ? (int32_t)bits : scale.top;
}
#endif

//: else
/* round(sum multiplier), half to even, clamped to 0 .. top. */
#if POLICY_VFP
static int32_t requantize(int32_t sum, struct scale scale)
{
    const float product = (float)sum * scale.multiplier;
    float register_of_fpu;
    int32_t rounded;
    __asm__("vcvtr.s32.f32 %0, %1" : "=t"(register_of_fpu) : "t"(product));
    memcpy(&rounded, &register_of_fpu, 4);
    rounded = rounded > 0 ? rounded : 0;
    return rounded < scale.top ? rounded : scale.top;
}
#else
/* The bits of the product are rounded as integers. A float addition here could be fused with the multiplication. */
static int32_t requantize(int32_t sum, struct scale scale)
{
    uint32_t bits, shift, mantissa;
    int32_t rounded;
    float product;
    if (sum <= 0) {
        return 0;
    }
    product = (float)sum * scale.multiplier;
    memcpy(&bits, &product, 4);
    bits = bits < 0x437f0000u ? bits : 0x437f0000u; /* 255.0; floats are ordered as their bits are */
    shift = 150 - (bits >> 23); /* product = mantissa 2^-shift, with shifts from 16 on; below 1/2 for 25 and more */
    shift = shift < 25 ? shift : 25;
    mantissa = (bits & 0x7fffffu) | 0x800000u;
    mantissa = (mantissa >> 1 | (mantissa & 1)) << (25 - shift); /* product = mantissa 2^-24; its last bit breaks ties */
    rounded = (int32_t)((mantissa + 0x7fffffu + (mantissa >> 24 & 1)) >> 24);
    return rounded < scale.top ? rounded : scale.top;
}
#endif

//: endif
//: endif
//: if hidden_dense
//: if not fixed
#if POLICY_VFP
/* Compilers make one instruction of it. */
static uint8_t clamp(int32_t rounded, int32_t top)
{
    rounded = rounded > 0 ? rounded : 0;
    return (uint8_t)(rounded < top ? rounded : top);
}

/* Four channels at a time. */
__attribute__((always_inline)) static inline void requantize_4(const int32_t *sums, const float *multiplier, int32_t top, uint8_t *out)
{
    int32_t rounded_0, rounded_1, rounded_2, rounded_3;
    __asm__("vldmia %[sums], {s0-s3}\n\t"
            "vldmia %[multiplier], {s4-s7}\n\t"
            "vcvt.f32.s32 s0, s0\n\t"
            "vcvt.f32.s32 s1, s1\n\t"
            "vcvt.f32.s32 s2, s2\n\t"
            "vcvt.f32.s32 s3, s3\n\t"
            "vmul.f32 s0, s0, s4\n\t"
            "vmul.f32 s1, s1, s5\n\t"
            "vmul.f32 s2, s2, s6\n\t"
            "vmul.f32 s3, s3, s7\n\t"
            "vcvtr.s32.f32 s0, s0\n\t"
            "vcvtr.s32.f32 s1, s1\n\t"
            "vcvtr.s32.f32 s2, s2\n\t"
            "vcvtr.s32.f32 s3, s3\n\t"
            "vmov %0, %1, s0, s1\n\t"
            "vmov %2, %3, s2, s3"
            : "=&r"(rounded_0), "=&r"(rounded_1), "=&r"(rounded_2), "=&r"(rounded_3)
            : [sums] "r"(sums), [multiplier] "r"(multiplier)
            : "s0", "s1", "s2", "s3", "s4", "s5", "s6", "s7", "memory");
    out[0] = clamp(rounded_0, top);
    out[1] = clamp(rounded_1, top);
    out[2] = clamp(rounded_2, top);
    out[3] = clamp(rounded_3, top);
}
#endif

//: endif
//: if not fixed
#if POLICY_VFP
__attribute__((always_inline)) inline /* each layer's own copy knows its numbers */
#endif
//: endif
static void activate(const struct layer *layer, const int32_t *POLICY_RESTRICT sums, uint8_t *POLICY_RESTRICT out)
{
    ${index_type} channel = 0;
//: if not fixed
#if POLICY_VFP
    for (; channel + 4 <= layer->n_out; channel += 4) {
        requantize_4(sums + channel, layer->multiplier + channel, layer->top, out + channel);
    }
#endif
//: endif
    for (; channel < layer->n_out; channel++) {
        out[channel] = (uint8_t)requantize(sums[channel], scale_of(layer, channel));
    }
}

//: endif
//: if conv
/* -- convolutions --------------------------------------------------------------------------------------------------- */

/* Widen the inputs under the kernel at one position to the given column. */
static void gather(const struct layer *layer, const uint8_t *in, uint32_t position, int16_t *columns, uint32_t column)
{
    const uint8_t *const window =
        in + position / layer->n_across * layer->step_down + position % layer->n_across * layer->step_across;
#if POLICY_DSP
    widen(columns + column * 4, 4 * N_COLUMNS, window, layer->window_rows, layer->window_run, layer->pitch);
#else
    widen(columns + column * layer->n_in, window, layer->window_rows, layer->window_run, layer->pitch);
#endif
}

/* Four positions at a time. If their number is no multiple of four, the last one is computed again. */
static void convolve(const struct layer *layer, const uint8_t *in, uint8_t *out, int16_t *columns${unpacked_parameter})
{
    const uint32_t n_in = layer->n_in, n_out = layer->n_out, last_position = layer->n_positions - 1u;
//: if packed
    uint32_t first, position, channel, i;
    for (first = 0; first < n_out; first += layer->chunk) {
        const int8_t *const all = rows(layer, first, unpacked);
        const uint32_t end = n_out - first < layer->chunk ? n_out : first + layer->chunk;
//: else
    uint32_t position, channel, i;
    {
        const uint32_t first = 0, end = n_out;
        const int8_t *const all = (const int8_t *)layer->weights;
//: endif
        for (position = 0; position <= last_position; position += N_COLUMNS) {
            const int8_t *weights = all;
            uint8_t *to[N_COLUMNS];
            for (i = 0; i < N_COLUMNS; i++) {
                const uint32_t each = position + i < last_position ? position + i : last_position;
                gather(layer, in, each, columns, i);
                to[i] = out + each * n_out;
            }
            for (channel = first; channel < end; channel++, weights += n_in) {
                const struct scale scale = scale_of(layer, channel);
                int32_t sums[N_COLUMNS];
                dot_4(columns, weights, n_in, layer->bias[channel], sums);
                for (i = 0; i < N_COLUMNS; i++) {
                    to[i][channel] = (uint8_t)requantize(sums[i], scale);
                }
            }
        }
    }
}

//: endif
