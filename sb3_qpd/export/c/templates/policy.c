//: import "macros.h" as macros with context
//: set hidden = layers[:-1]
//: set hidden_dense = hidden | rejectattr("is_conv") | list
//: set conv = layers | selectattr("is_conv") | list
//: set packed = layers | selectattr("is_packed") | list
//: set unpacked = layers | rejectattr("is_packed") | list
//: set ragged = layers | rejectattr("run", "divisibleby", 4) | list
//: set half_eights = layers | rejectattr("run", "divisibleby", 8) | list
//: set half_eights = half_eights or layers | rejectattr("n_in", "divisibleby", 8) | list
//: set four_frames = image and n_frames == 4 and model.observation_shape[0] == 4
//: set unpacked_parameter = ", int8_t *unpacked" if packed else ""
//: set flash_rows = packed and unpacked
/*
 * ${macros.title()}
 *
 * Written by sb3_qpd ${version}. Each layer sums weight times input in 32 bits. A rounded multiplication and a clamp bring the
 * sums to the grid of the next layer, 0 to 2^bits - 1; the clamp at zero is the ReLU.
 *
//: for layer in layers
 *     ${macros.describe(layer)}
//: endfor
 */
#include "policy.h"

#include <string.h>

//: if fixed
#if defined(__FAST_MATH__) && defined(POLICY_FLOAT_HELPERS)
//: else
#if defined(__FAST_MATH__)
//: endif
#error "Compile without -ffast-math: it changes the policy's results"
#endif
//: if has_origin and fixed
#if defined(POLICY_FLOAT_HELPERS) && defined(__FLT_EVAL_METHOD__) && __FLT_EVAL_METHOD__ != 0 && __FLT_EVAL_METHOD__ != 16
#error "This processor computes float in a wider format: compile with -mfpmath=sse, or without POLICY_FLOAT_HELPERS"
#endif
//: endif
//: if not fixed
#if defined(__FLT_EVAL_METHOD__) && __FLT_EVAL_METHOD__ != 0 && __FLT_EVAL_METHOD__ != 16
#error "This processor computes float in a wider format: export with requantization='fixed', or compile with -mfpmath=sse"
#endif
//: endif
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "Little-endian processors only"
#endif

#if defined(__AVR__)
//: if conv
#error "Convolutions are not for AVR: their images and sums need more memory than it has"
//: elif has_origin and not fixed
#error "AVR has no double of 64 bits for the observation's origin: export with requantization='fixed'"
//: endif
#if POLICY_ARENA_BYTES > 16384
#error "The layers need more memory than an AVR has"
#endif

/* Constants stay in flash, which has instructions of its own to be read. */
#include <avr/pgmspace.h>
#define POLICY_FLASH PROGMEM
#define POLICY_READ_8(address) pgm_read_byte(address)
#define POLICY_READ_16(address) pgm_read_word(address)
#define POLICY_READ_32(address) pgm_read_dword(address)
#define POLICY_READ_FLOAT(address) pgm_read_float(address)
#else
#define POLICY_FLASH
#define POLICY_READ_8(address) (*(address))
#define POLICY_READ_16(address) (*(address))
#define POLICY_READ_32(address) (*(address))
#define POLICY_READ_FLOAT(address) (*(address))
#endif

/* Small processors multiply bytes as fast as they multiply numbers of 16 bits. Others have SIMD instructions for the latter. */
#if defined(__AVR__) || defined(__XTENSA__) || (defined(__riscv_xlen) && __riscv_xlen == 32) ||                              \
    (defined(__ARM_ARCH_PROFILE) && __ARM_ARCH_PROFILE == 'M')
typedef uint8_t dense_input;
#define POLICY_WIDENS 0
#else
typedef int16_t dense_input;
#define POLICY_WIDENS 1
#endif

/* ARM's instructions for pairs of 16-bit numbers. Without optimization the assembler finds too few free registers. */
#if defined(__ARM_FEATURE_DSP) && defined(__thumb2__) && defined(__OPTIMIZE__) && !POLICY_WIDENS
#define POLICY_DSP 1
#else
#define POLICY_DSP 0
#endif

//: if hidden or vector
/* ARM's FPU rounds half to even in one instruction. */
#if defined(__arm__) && defined(__ARM_FP) && (__ARM_FP & 4) != 0
#define POLICY_VFP 1
#else
#define POLICY_VFP 0
#endif

//: endif
#ifdef __cplusplus
#define POLICY_RESTRICT __restrict
#else
#define POLICY_RESTRICT restrict
#endif

/* A test harness defines this macro to read the output of each layer. */
#ifndef POLICY_TRACE
#define POLICY_TRACE(step, values, n_bytes) ((void)0)
#endif

/* -- layers --------------------------------------------------------------------------------------------------------- */

struct layer {
    const void *weights;  /* rows of int8_t${", or bit planes in uint32_t" if packed else ""} */
    const int32_t *bias;
//: if hidden and fixed
    const uint32_t *multiplier; /* is multiplied by 2^-(shift + 1) */
    const uint8_t *shift;
//: elif hidden
    const float *multiplier;
//: endif
    ${size_type} n_in; /* weights of one output */
    ${size_type} n_out;
//: if hidden
    ${size_type} top; /* largest output, 2^bits - 1 */
//: endif
//: if packed
    ${size_type} bits;
    ${size_type} chunk; /* rows of weights that are unpacked together */
//: endif
//: if conv
    ${size_type} n_positions; /* positions of the kernel on the input */
    ${size_type} n_across;
    ${size_type} step_across; /* bytes from one position to the next in a row */
    ${size_type} step_down;
    ${size_type} window_rows;
    ${size_type} window_run; /* bytes of a row under the kernel */
    ${size_type} pitch;      /* bytes from one row of the input to the next */
//: endif
};

//: for layer in layers
//: if layer.is_packed
${macros.flash_array("uint32_t", layer.name ~ "_weights", layer.stored | hex)}
//: else
${macros.flash_array("int8_t", layer.name ~ "_weights", layer.stored | integers)}
//: endif
${macros.flash_array("int32_t", layer.name ~ "_bias", layer.bias | integers)}
//: if fixed and not layer.is_head
//: set multiplier, shift = layer.fixed()
${macros.flash_array("uint32_t", layer.name ~ "_multiplier", multiplier | unsigned)}
${macros.flash_array("uint8_t", layer.name ~ "_shift", (shift - 1) | integers)}
//: elif not layer.is_head
${macros.flash_array("float", layer.name ~ "_multiplier", layer.layer.multiplier | floats)}
//: endif
//#
//: endfor
//#
//: for layer, sizes in zip(layers, dimensions)
//: set multiplier = "NULL" if layer.is_head else layer.name ~ "_multiplier"
//: set shift = "NULL" if layer.is_head else layer.name ~ "_shift"
//: set scale = [multiplier, shift] if hidden and fixed else [multiplier] if hidden else []
static const struct layer ${layer.name} = {${layer.name}_weights, ${layer.name}_bias, ${(scale + sizes) | join(", ")}};
//: endfor
//#
/* Outputs of layers and working memory: bytes and 16-bit numbers, at offsets that overlap where lifetimes allow it. */
static union {
    int16_t halves[POLICY_ARENA_BYTES / 2];
    uint32_t aligned;
} arena;

//: if image
//: if four_frames
static uint32_t stack[POLICY_FRAME_SIZE]; /* one word per pixel, the oldest frame in the lowest byte */
//: else
static uint8_t stack[POLICY_STACK_BYTES]; /* pixel after pixel; within a pixel the oldest frame first */
//: endif
static int has_frame = 0;

//: endif
static uint8_t *at(uint32_t offset)
{
    return (uint8_t *)arena.halves + offset;
}

/* -- sums ----------------------------------------------------------------------------------------------------------- */

/*
 * The inputs under each position of a kernel are widened to a column of 16-bit numbers. Four columns share each weight that
 * is read. The DSP extension multiplies and adds two pairs of 16-bit numbers at once. For it, elements are in blocks of four,
 * in the order 0 2 1 3 that the widening instructions produce, and the blocks of four columns alternate.
 */
//: if conv
enum { N_COLUMNS = 4 };
//: endif
//#
#if POLICY_DSP

//: if ragged
/* The last inputs of a layer in the lowest bytes, and zeros: they cancel the weights behind the end of a row. */
static uint32_t last_inputs(const uint8_t *in, uint32_t n)
{
    uint32_t i, last = 0;
    for (i = 0; i < n; i++) {
        last |= (uint32_t)in[i] << 8 * i;
    }
    return last;
}

//: endif
//: if conv
/* Widen four bytes at %1 to 16 bits at %0, then advance %0 by %2 bytes. */
#define WIDEN_FOUR                                                                                                           \
    "ldr r0, [%1], #4\n\t"                                                                                                   \
    "uxtb16 r2, r0\n\t"                                                                                                      \
    "uxtb16 r3, r0, ror #8\n\t"                                                                                              \
    "strd r2, r3, [%0]\n\t"                                                                                                  \
    "add %0, %2\n\t"

static void widen(int16_t *to, uint32_t distance, const uint8_t *from, uint32_t n_rows, uint32_t run, uint32_t pitch)
{
    const uint32_t distance_in_bytes = 2 * distance, eights = run / 8 * 8;
    for (; n_rows > 0; n_rows--) {
        const uint8_t *row = from;
        const uint8_t *const end = row + eights;
        while (row != end) {
            __asm__ volatile(WIDEN_FOUR WIDEN_FOUR
                             : "+r"(to), "+r"(row)
                             : "r"(distance_in_bytes)
                             : "r0", "r2", "r3", "memory", "cc");
        }
//: if half_eights
        if ((run & 4) != 0) {
            __asm__ volatile(WIDEN_FOUR : "+r"(to), "+r"(row) : "r"(distance_in_bytes) : "r0", "r2", "r3", "memory", "cc");
        }
//: endif
//: if ragged
        if ((run & 3) != 0) {
            const uint32_t last = last_inputs(row, run & 3);
            row = (const uint8_t *)&last;
            __asm__ volatile(WIDEN_FOUR : "+r"(to), "+r"(row) : "r"(distance_in_bytes) : "r0", "r2", "r3", "memory", "cc");
        }
//: endif
        from += pitch;
    }
}

//: endif
/* Widen four inputs to r2 and r3, and advance to the next ones. */
#define FOUR_INPUTS                                                                                                          \
    "ldr r0, [%[in]], #4\n\t"                                                                                                \
    "uxtb16 r2, r0\n\t"                                                                                                      \
    "uxtb16 r3, r0, ror #8\n\t"

/* Add these inputs times four weights of a row. */
#define FOUR_WEIGHTS(sum, address)                                                                                           \
    "ldr r0, " address "\n\t"                                                                                                \
    "sxtb16 r1, r0\n\t"                                                                                                      \
    "sxtb16 r0, r0, ror #8\n\t"                                                                                              \
    "smlad " sum ", r2, r1, " sum "\n\t"                                                                                     \
    "smlad " sum ", r3, r0, " sum "\n\t"

#define ONE_ROW FOUR_INPUTS FOUR_WEIGHTS("%[sum_0]", "[%[weights]], #4")
#define FOUR_ROWS                                                                                                            \
    FOUR_INPUTS FOUR_WEIGHTS("%[sum_1]", "[%[weights], %[n]]") FOUR_WEIGHTS("%[sum_2]", "[%[weights], %[n], lsl #1]")          \
        FOUR_WEIGHTS("%[sum_3]", "[%[weights], %[three_n]]") FOUR_WEIGHTS("%[sum_0]", "[%[weights]], #4")

/* The sums of as many rows as there are in whole fours. Four rows of weights share the inputs that are read. */
static void dot_rows(
    const uint8_t *inputs, const int8_t *rows, uint32_t n, uint32_t n_rows, const int32_t *bias, int32_t *sums)
{
    const int32_t *const last = bias + n_rows / 4 * 4;
    const uint32_t three_n = 3 * n;
    for (; bias != last; bias += 4, sums += 4, rows += 4 * n) {
        int32_t sum_0 = bias[0], sum_1 = bias[1], sum_2 = bias[2], sum_3 = bias[3];
        const uint8_t *in = inputs, *const end = in + n / 8 * 8;
        const int8_t *weights = rows;
        while (in != end) {
            ${macros.add_rows("FOUR_ROWS FOUR_ROWS") | indent(12)}
        }
//: if half_eights
        if ((n & 4) != 0) {
            ${macros.add_rows("FOUR_ROWS") | indent(12)}
        }
//: endif
//: if ragged
        if ((n & 3) != 0) {
            const uint32_t last_four = last_inputs(in, n & 3);
            in = (const uint8_t *)&last_four;
            ${macros.add_rows("FOUR_ROWS") | indent(12)}
        }
//: endif
        ${macros.store_sums() | indent(8)}
    }
}

static int32_t dot(const uint8_t *in, const int8_t *weights, uint32_t n, int32_t sum_0)
{
    const uint8_t *const end = in + n / 4 * 4;
    while (in != end) {
        ${macros.add_row("ONE_ROW") | indent(8)}
    }
//: if ragged
    if ((n & 3) != 0) {
        const uint32_t last = last_inputs(in, n & 3);
        in = (const uint8_t *)&last;
        ${macros.add_row("ONE_ROW") | indent(8)}
    }
//: endif
    return sum_0;
}

//: if conv
/* Add four weights times four columns. %0 to %3: sums; %4: weights; %5: columns. */
#define FOUR_BY_FOUR                                                                                                         \
    "ldr r0, [%4], #4\n\t"                                                                                                   \
    "sxtb16 r1, r0\n\t"                                                                                                      \
    "sxtb16 r0, r0, ror #8\n\t"                                                                                              \
    "ldrd r2, r3, [%5], #8\n\t"                                                                                              \
    "smlad %0, r2, r1, %0\n\t"                                                                                               \
    "smlad %0, r3, r0, %0\n\t"                                                                                               \
    "ldrd r2, r3, [%5], #8\n\t"                                                                                              \
    "smlad %1, r2, r1, %1\n\t"                                                                                               \
    "smlad %1, r3, r0, %1\n\t"                                                                                               \
    "ldrd r2, r3, [%5], #8\n\t"                                                                                              \
    "smlad %2, r2, r1, %2\n\t"                                                                                               \
    "smlad %2, r3, r0, %2\n\t"                                                                                               \
    "ldrd r2, r3, [%5], #8\n\t"                                                                                              \
    "smlad %3, r2, r1, %3\n\t"                                                                                               \
    "smlad %3, r3, r0, %3\n\t"

static void dot_4(const int16_t *columns, const int8_t *weights, uint32_t n, int32_t sum, int32_t sums[N_COLUMNS])
{
    int32_t sum_0 = sum, sum_1 = sum, sum_2 = sum, sum_3 = sum;
    const int8_t *const end = weights + n / 8 * 8;
    while (weights != end) {
        ${macros.multiply_and_add("FOUR_BY_FOUR FOUR_BY_FOUR") | indent(8)}
    }
//: if half_eights
    if (n % 8 != 0) {
        ${macros.multiply_and_add("FOUR_BY_FOUR") | indent(8)}
    }
//: endif
    ${macros.store_sums() | indent}
}

//: endif
#elif defined(__AVR__)

/* AVR multiplies an input by a weight, two bytes, in one instruction: inputs are not widened. */
//: if packed
${macros.dot_of_bytes("dot", "*weights")}

//: endif
//: if unpacked
${macros.dot_of_bytes("dot_flash" if flash_rows else "dot", "pgm_read_byte(weights)")}

//: endif
#else

/* Plain loops that compilers vectorize. */
//: if not conv
#if POLICY_WIDENS
//: endif
static void widen(
    int16_t *POLICY_RESTRICT to, const uint8_t *POLICY_RESTRICT from, uint32_t n_rows, uint32_t run, uint32_t pitch)
{
    uint32_t i;
    for (; n_rows > 0; n_rows--, from += pitch) {
        for (i = 0; i < run; i++) {
            to[i] = from[i];
        }
        for (; i % 4 != 0; i++) {
            to[i] = 0;
        }
        to += i;
    }
}
//: if not conv
#endif
//: endif

static void dot_rows(
    const dense_input *column, const int8_t *rows, uint32_t n, uint32_t n_rows, const int32_t *bias, int32_t *sums)
{
    const int32_t *const last = bias + n_rows / 4 * 4;
    for (; bias != last; bias += 4, sums += 4, rows += 4 * n) {
        int32_t sum_0 = bias[0], sum_1 = bias[1], sum_2 = bias[2], sum_3 = bias[3];
        const int8_t *const row_1 = rows + n, *const row_2 = row_1 + n, *const row_3 = row_2 + n;
        uint32_t i;
        for (i = 0; i < n; i++) {
            const int32_t input = column[i];
            sum_0 += input * rows[i];
            sum_1 += input * row_1[i];
            sum_2 += input * row_2[i];
            sum_3 += input * row_3[i];
        }
        ${macros.store_sums() | indent(8)}
    }
}

static int32_t dot(const dense_input *column, const int8_t *weights, uint32_t n, int32_t sum)
{
    uint32_t i;
    for (i = 0; i < n; i++) {
        const int16_t weight = weights[i];
        sum += (int32_t)column[i] * weight;
    }
    return sum;
}

//: if conv
static void dot_4(const int16_t *columns, const int8_t *weights, uint32_t n, int32_t sum, int32_t sums[N_COLUMNS])
{
    int32_t sum_0 = sum, sum_1 = sum, sum_2 = sum, sum_3 = sum;
    const int16_t *const column_1 = columns + n, *const column_2 = column_1 + n, *const column_3 = column_2 + n;
    uint32_t i;
    for (i = 0; i < n; i++) {
        const int16_t weight = weights[i];
        sum_0 += (int32_t)columns[i] * weight;
        sum_1 += (int32_t)column_1[i] * weight;
        sum_2 += (int32_t)column_2[i] * weight;
        sum_3 += (int32_t)column_3[i] * weight;
    }
    ${macros.store_sums() | indent}
}

//: endif
#endif

//: if packed
/*
 * Unpack weights of fewer than 8 bits. A group of 32 weights has one word for each bit of a weight, the sign last. Bit
 * 8 i + j of a word belongs to weight 4 j + i.
 */
#if defined(__AVR__)
/* Byte by byte, and bit by bit from the sign on. */
static void unpack(int8_t *to, const uint32_t *words, uint32_t n, uint32_t n_bits)
{
    const uint8_t *planes = (const uint8_t *)words;
    const uint8_t bits = (uint8_t)n_bits;
    const int8_t *const end = to + n;
    uint8_t lane, j, bit;
    for (; to < end; planes += 4 * bits, to += 32) {
        for (lane = 0; lane < 4; lane++) {
            uint8_t plane[8];
            for (bit = 0; bit < bits; bit++) {
                plane[bit] = pgm_read_byte(planes + 4 * bit + lane);
            }
            for (j = 0; j < 8; j++) {
                int8_t weight = plane[bits - 1] & 1 ? -1 : 0;
                for (bit = bits; bit-- > 0;) {
                    weight = (int8_t)(weight * 2 | (plane[bit] & 1));
                    plane[bit] = (uint8_t)(plane[bit] >> 1);
                }
                to[4 * j + lane] = weight;
            }
        }
    }
}
#else
static void unpack(int8_t *to, const uint32_t *words, uint32_t n, uint32_t bits)
{
    const uint32_t sign = 256u - (1u << (bits - 1));
    uint32_t i, j, bit;
    for (i = 0; i < n; i += 32, words += bits) {
        for (j = 0; j < 8; j++, to += 4) {
            uint32_t four = ((words[bits - 1] >> j) & 0x01010101u) * sign;
            for (bit = 0; bit < bits - 1; bit++) {
                four |= ((words[bit] >> j) & 0x01010101u) << bit;
            }
            memcpy(to, &four, 4);
        }
    }
}
#endif

/* The weights of a layer from row `first` on. With fewer than 8 bits these are the rows of one chunk, unpacked. */
static const int8_t *rows(const struct layer *layer, uint32_t first, int8_t *unpacked)
{
    const uint32_t n_in = layer->n_in, chunk = layer->chunk, bits = layer->bits, rest = layer->n_out - first;
    const uint32_t words_per_chunk = (chunk * n_in + 31) / 32 * bits;
    if (bits == 8) {
        return (const int8_t *)layer->weights + first * n_in;
    }
    unpack(unpacked, (const uint32_t *)layer->weights + first / chunk * words_per_chunk,
           (rest < chunk ? rest : chunk) * n_in, bits);
    return unpacked;
}

//: endif
/* The sums of a fully connected layer. */
static void connect(const struct layer *layer, const uint8_t *in, int32_t *sums, int16_t *room${unpacked_parameter})
{
    const ${index_type} n_in = layer->n_in, n_out = layer->n_out;
    ${index_type} row = 0;
#if POLICY_WIDENS
    dense_input *const column = room;
    widen(column, in, 1, layer->n_in, 0);
#else
    const dense_input *const column = in;
    (void)room;
#endif
    while (row < n_out) {
//: if packed
        const ${index_type} end = n_out - row < layer->chunk ? n_out : row + layer->chunk;
        const int8_t *weights = rows(layer, (uint32_t)row, unpacked);
//: else
        const ${index_type} end = n_out;
        const int8_t *weights = (const int8_t *)layer->weights;
//: endif
#if !defined(__AVR__)
        const ${index_type} n_rows = (end - row) / 4 * 4;
        dot_rows(column, weights, layer->n_in, (uint32_t)n_rows, layer->bias + row, sums + row);
        weights += n_rows * n_in;
        row += n_rows;
#endif
        for (; row < end; row++, weights += n_in) {
            const int32_t bias = (int32_t)POLICY_READ_32(layer->bias + row);
//: if flash_rows
#if defined(__AVR__)
            sums[row] = (layer->bits == 8 ? dot_flash : dot)(column, weights, layer->n_in, bias);
#else
            sums[row] = dot(column, weights, layer->n_in, bias);
#endif
//: else
            sums[row] = dot(column, weights, layer->n_in, bias);
//: endif
        }
    }
}

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
//: if image
/* -- frames --------------------------------------------------------------------------------------------------------- */

void policy_reset(void)
{
    has_frame = 0;
}

int policy_push_frame(const uint8_t frame[POLICY_FRAME_SIZE])
{
//: if four_frames
    const uint32_t kept = has_frame ? 0xffffffffu : 0;
    uint32_t pixel;
//: else
    const uint32_t n = POLICY_FRAME_CHANNELS * POLICY_N_FRAMES, kept = n - POLICY_FRAME_CHANNELS;
    uint32_t pixel, channel;
//: endif
    if (frame == NULL) {
        return POLICY_NULL_POINTER;
    }
//: if four_frames
    for (pixel = 0; pixel < POLICY_FRAME_SIZE; pixel++) {
        stack[pixel] = (stack[pixel] >> 8 & kept) | (uint32_t)frame[pixel] << 24;
    }
//: else
    for (pixel = 0; pixel < POLICY_FRAME_HEIGHT * POLICY_FRAME_WIDTH; pixel++) {
        uint8_t *const frames = stack + pixel * n;
//: if n_frames > 1
        for (channel = 0; channel < kept; channel++) {
            frames[channel] = has_frame ? frames[channel + POLICY_FRAME_CHANNELS] : 0;
        }
//: endif
        for (channel = 0; channel < POLICY_FRAME_CHANNELS; channel++) {
            frames[kept + channel] = frame[pixel * POLICY_FRAME_CHANNELS + channel];
        }
    }
//: endif
    has_frame = 1;
    return POLICY_OK;
}

//: endif
//: if vector
/* -- observations ---------------------------------------------------------------------------------------------------- */

//: if fixed
#ifdef POLICY_FLOAT_HELPERS

//: endif
static const float input_multiplier[POLICY_OBSERVATION_SIZE] POLICY_FLASH = ${model.input_multiplier | floats | inline};
static const float input_offset[POLICY_OBSERVATION_SIZE] POLICY_FLASH = ${model.input_offset | floats | inline};

//: if has_origin
static const double input_origin[POLICY_OBSERVATION_SIZE] = POLICY_OBSERVATION_ORIGIN;

/* The processor's double, and its constants: not with -fsingle-precision-constant or -fshort-double, and not on AVR. */
typedef char policy_needs_double_of_64_bits[sizeof(double) == 8 && sizeof(1.0) == 8 ? 1 : -1];

/* From 2^128 - 2^103 on, a double becomes an infinite float. */
static int is_finite(const double *observation)
{
    uint32_t i;
    for (i = 0; i < POLICY_OBSERVATION_SIZE; i++) {
        const double rest = observation[i] - input_origin[i];
        if (!(rest > -3.4028235677973366e+38 && rest < 3.4028235677973366e+38)) {
            return 0;
        }
    }
    return 1;
}

//: else
static int is_finite(const float *observation)
{
    uint32_t i, bits;
    for (i = 0; i < POLICY_OBSERVATION_SIZE; i++) {
        memcpy(&bits, observation + i, 4);
        if ((bits & 0x7f800000u) == 0x7f800000u) {
            return 0;
        }
    }
    return 1;
}

//: endif
/* clamp(round(x m + a), -128, 127), half to even. `volatile`, or assembler, prevents a fused x m + a, which would round once. */
//: if has_origin
static int32_t to_grid(double observed, uint32_t feature)
{
    const float x = (float)(observed - input_origin[feature]);
//: else
static int32_t to_grid(float x, uint32_t feature)
{
//: endif
    const float multiplier = POLICY_READ_FLOAT(input_multiplier + feature), offset = POLICY_READ_FLOAT(input_offset + feature);
#if POLICY_VFP
    float scaled, shifted;
    int32_t rounded;
    __asm__("vmul.f32 %0, %1, %2" : "=t"(scaled) : "t"(x), "t"(multiplier));
    shifted = scaled + offset;
    __asm__("vcvtr.s32.f32 %0, %1" : "=t"(shifted) : "t"(shifted));
    memcpy(&rounded, &shifted, 4);
    __asm__("ssat %0, #8, %1" : "=r"(rounded) : "r"(rounded));
    return rounded;
#else
    const volatile float scaled = x * multiplier;
    const float shifted = scaled + offset;
    const float clamped = shifted < -128.0f ? -128.0f : (shifted > 127.0f ? 127.0f : shifted);
    const float rounded = clamped + 12582912.0f; /* 1.5 2^23: the last bit of the mantissa counts 1 */
    int32_t bits;
    memcpy(&bits, &rounded, 4);
    return bits - 0x4b400000;
#endif
}

//: if fixed
int policy_quantize(const ${real_type} observation[POLICY_OBSERVATION_SIZE], int8_t grid[POLICY_OBSERVATION_SIZE])
{
    uint32_t i;
    if (observation == NULL || grid == NULL) {
        return POLICY_NULL_POINTER;
    }
    if (!is_finite(observation)) {
        return POLICY_NOT_FINITE;
    }
    for (i = 0; i < POLICY_OBSERVATION_SIZE; i++) {
        grid[i] = (int8_t)to_grid(observation[i], i);
    }
    return POLICY_OK;
}

#endif

int policy_quantize_int16(const int16_t observation[POLICY_OBSERVATION_SIZE], int8_t grid[POLICY_OBSERVATION_SIZE])
{
    uint32_t i;
    if (observation == NULL || grid == NULL) {
        return POLICY_NULL_POINTER;
    }
    for (i = 0; i < POLICY_OBSERVATION_SIZE; i++) {
        const int32_t rounded = (observation[i] + 32768 + 128) / 256 - 128;
        grid[i] = (int8_t)(rounded < 127 ? rounded : 127);
    }
    return POLICY_OK;
}

//: endif
//: elif indices
/* -- observations ---------------------------------------------------------------------------------------------------- */

/* A category on the input grid plus 128: where it is not the index, and where it is. */
static const uint8_t absent[${absent | length}] POLICY_FLASH = ${absent | integers | inline};
static const uint8_t present[${present | length}] POLICY_FLASH = ${present | integers | inline};
static const uint32_t categories[POLICY_OBSERVATION_SIZE] POLICY_FLASH = POLICY_CATEGORIES;

//: endif
/* -- the policy ----------------------------------------------------------------------------------------------------- */

int policy_outputs(${macros.observation_parameter}int32_t outputs[POLICY_N_OUTPUTS])
{
//: if hidden_dense
    int32_t sums[${hidden_dense | map(attribute="n_out") | max}];
//: endif
//: if vector
    uint32_t i;
//: elif indices
    uint32_t i, category, feature = 0;
//: endif
//: if image
    if (outputs == NULL) {
        return POLICY_NULL_POINTER;
    }
    if (!has_frame) {
        return POLICY_NO_FRAME;
    }
    POLICY_TRACE(0, stack, POLICY_STACK_BYTES);

//: else
    uint8_t *const in = at(${places[0].input});
    if (observation == NULL || outputs == NULL) {
        return POLICY_NULL_POINTER;
    }
//: endif
//: if vector
//: if not fixed
    if (!is_finite(observation)) {
        return POLICY_NOT_FINITE;
    }
//: endif
    /* 128 is added to the grid, so that inputs are never negative; the biases of the first layer subtract it. */
    for (i = 0; i < POLICY_OBSERVATION_SIZE; i++) {
        in[i] = (uint8_t)(${"observation[i]" if fixed else "to_grid(observation[i], i)"} + 128);
    }
    POLICY_TRACE(0, in, POLICY_OBSERVATION_SIZE);

//: elif indices
    for (i = 0; i < POLICY_OBSERVATION_SIZE; i++) {
        if (observation[i] < 0 || (uint32_t)observation[i] >= POLICY_READ_32(categories + i)) {
            return POLICY_NO_CATEGORY;
        }
    }
    for (i = 0; i < POLICY_OBSERVATION_SIZE; i++) {
        for (category = 0; category < POLICY_READ_32(categories + i); category++, feature++) {
            in[feature] = category == (uint32_t)observation[i] ? POLICY_READ_8(present + feature) : POLICY_READ_8(absent + feature);
        }
    }
    POLICY_TRACE(0, in, ${absent | length});

//: endif
//: for layer, place in zip(layers, places)
//: set source = "(const uint8_t *)stack" if image and loop.first else "at(%d)" | format(place.input)
//: set room = "arena.halves + %d" | format(place.columns // 2)
//: set room = room ~ ", (int8_t *)at(%d)" | format(place.unpacked) if packed else room
    /* ${macros.describe(layer)} */
//: if layer.is_head
    connect(&${layer.name}, ${source}, outputs, ${room});
    POLICY_TRACE(${loop.index}, outputs, ${4 * layer.n_out});
//: else
//: if layer.is_conv
    convolve(&${layer.name}, ${source}, at(${place.output}), ${room});
//: else
    connect(&${layer.name}, ${source}, sums, ${room});
    activate(&${layer.name}, sums, at(${place.output}));
//: endif
    POLICY_TRACE(${loop.index}, at(${place.output}), ${layer.output_bytes});
//: endif
//: endfor
    return POLICY_OK;
}

//: if several
static const uint32_t action_categories[POLICY_N_ACTIONS] = POLICY_ACTION_CATEGORIES;

/* Scores of all categories of the first index, then of the second, and so on. */
static int all_scores(${macros.observation_parameter}int32_t scores[${model.action_nvec | sum}])
{
//: if model.n_bits
    int32_t outputs[POLICY_N_OUTPUTS], i;
    const int code = policy_outputs(${macros.observation_argument}outputs);
    for (i = 0; code == POLICY_OK && i < POLICY_N_OUTPUTS; i++) {
        scores[2 * i] = 0;
        scores[2 * i + 1] = outputs[i];
    }
    return code;
//: else
    return policy_outputs(${macros.observation_argument}scores);
//: endif
}

int policy_act(${macros.observation_parameter}int32_t action[POLICY_N_ACTIONS])
{
    int32_t all[${model.action_nvec | sum}];
    const int32_t *scores = all;
    uint32_t index, i;
    const int code = action == NULL ? POLICY_NULL_POINTER : all_scores(${macros.observation_argument}all);
    if (code != POLICY_OK) {
        return code;
    }
    for (index = 0; index < POLICY_N_ACTIONS; scores += action_categories[index], index++) {
        uint32_t best = 0;
        for (i = 1; i < action_categories[index]; i++) {
            best = scores[i] > scores[best] ? i : best;
        }
        action[index] = (int32_t)best;
    }
    return POLICY_OK;
}

//: elif discrete
int policy_act(${macros.observation_parameter}int32_t *action)
{
    int32_t outputs[POLICY_N_OUTPUTS], i, best = 0;
    ${macros.compute_outputs() | indent}
    for (i = 1; i < POLICY_N_OUTPUTS; i++) {
        best = outputs[i] > outputs[best] ? i : best;
    }
    *action = best;
    return POLICY_OK;
}

//: endif
//: if not box
/* exp(-d) in integers, for d in units of 1/256: one table for its quarters times one table for the rest. */
static const uint32_t exp_high[64] POLICY_FLASH = ${exp_high | integers | block};
static const uint16_t exp_low[64] POLICY_FLASH = ${exp_low | integers | block};
//: endif
//: if several
static const uint8_t weight_shifts[POLICY_N_ACTIONS] = ${weight_shifts | integers | inline};

int policy_sample(
    ${macros.observation_parameter}const uint32_t random_bits[POLICY_N_ACTIONS], int32_t action[POLICY_N_ACTIONS])
{
    int32_t all[${model.action_nvec | sum}];
    const int32_t *scores = all;
    uint32_t index, i;
    const int code =
        action == NULL || random_bits == NULL ? POLICY_NULL_POINTER : all_scores(${macros.observation_argument}all);
    if (code != POLICY_OK) {
        return code;
    }
    for (index = 0; index < POLICY_N_ACTIONS; scores += action_categories[index], index++) {
        uint32_t running[${model.action_nvec | max}], total = 0, threshold;
        int32_t largest = scores[0];
        ${macros.draw("scores", "action_categories[index]", "random_bits[index]", "weight_shifts[index]", "\n        ")
           | indent(8)}
        action[index] = (int32_t)i;
    }
    return POLICY_OK;
}
//: elif discrete
//#
int policy_sample(${macros.observation_parameter}uint32_t random_bits, int32_t *action)
{
    int32_t outputs[POLICY_N_OUTPUTS], largest, i;
    uint32_t running[POLICY_N_OUTPUTS], total = 0, threshold;
    ${macros.compute_outputs() | indent}
    largest = outputs[0];
    ${macros.draw("outputs", "POLICY_N_OUTPUTS", "random_bits", weight_shifts[0]) | indent}
    *action = i;
    return POLICY_OK;
}
//: endif
//: if box
//: if fixed
static const int32_t lowest[POLICY_N_OUTPUTS] POLICY_FLASH = ${lowest | integers | inline};
static const int32_t highest[POLICY_N_OUTPUTS] POLICY_FLASH = ${highest | integers | inline};

int policy_act(${macros.observation_parameter}int32_t action[POLICY_N_OUTPUTS])
{
    int32_t outputs[POLICY_N_OUTPUTS], i;
    ${macros.compute_outputs() | indent}
    for (i = 0; i < POLICY_N_OUTPUTS; i++) {
        const int32_t low = (int32_t)POLICY_READ_32(lowest + i), high = (int32_t)POLICY_READ_32(highest + i);
        action[i] = outputs[i] < low ? low : (outputs[i] > high ? high : outputs[i]);
    }
    return POLICY_OK;
}

#ifdef POLICY_FLOAT_HELPERS

//: endif
static const float action_scale[POLICY_N_OUTPUTS] POLICY_FLASH = POLICY_ACTION_SCALE;
static const float action_low[POLICY_N_OUTPUTS] POLICY_FLASH = POLICY_ACTION_LOW;
static const float action_high[POLICY_N_OUTPUTS] POLICY_FLASH = POLICY_ACTION_HIGH;

//: if fixed
int policy_action_to_float(const int32_t action[POLICY_N_OUTPUTS], float result[POLICY_N_OUTPUTS])
{
    uint32_t i;
    if (action == NULL || result == NULL) {
        return POLICY_NULL_POINTER;
    }
    ${macros.clip_mean("action", "result") | indent}
    return POLICY_OK;
}

#endif
//: else
int policy_act(${macros.observation_parameter}float action[POLICY_N_OUTPUTS])
{
    int32_t outputs[POLICY_N_OUTPUTS], i;
    ${macros.compute_outputs() | indent}
    ${macros.clip_mean("outputs", "action") | indent}
    return POLICY_OK;
}
//: endif
//: endif
