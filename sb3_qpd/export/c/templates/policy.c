//: import "macros.h" as macros with context
//: set hidden = layers | rejectattr("is_head") | list
//: set hidden_dense = hidden | rejectattr("is_conv") | list
//: set conv = layers | selectattr("is_conv") | list
//: set packed = layers | selectattr("is_packed") | list
//: set unpacked = layers | rejectattr("is_packed") | list
//: set ragged = layers | rejectattr("run", "divisibleby", 4) | list
//: set half_eights = layers | rejectattr("run", "divisibleby", 8) | list
//: set half_eights = half_eights or layers | rejectattr("n_in", "divisibleby", 8) | list
//: set four_frames = image and n_frames == 4 and model.observation_shape[0] == 4
//: set self = "state->" if reentrant else ""
//: set at = "at(state, %d)" if reentrant else "at(%d)"
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
//: if not reentrant
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

//: else
static uint8_t *at(struct policy_state *state, uint32_t offset)
{
    return (uint8_t *)state->arena.halves + offset;
}

//: endif
//: include "sums.c"
//: include "rescaling.c"
//: if image
/* -- frames --------------------------------------------------------------------------------------------------------- */

//: if reentrant
void policy_reset_r(struct policy_state *state)
{
    if (state != NULL) {
        state->has_frame = 0;
    }
}

int policy_push_frame_r(struct policy_state *state, const uint8_t frame[POLICY_FRAME_SIZE])
{
//: else
void policy_reset(void)
{
    has_frame = 0;
}

int policy_push_frame(const uint8_t frame[POLICY_FRAME_SIZE])
{
//: endif
//: if four_frames
//: set kept_bits = "state != NULL && state->has_frame" if reentrant else "has_frame"
    const uint32_t kept = ${kept_bits} ? 0xffffffffu : 0;
    uint32_t pixel;
//: else
    const uint32_t n = POLICY_FRAME_CHANNELS * POLICY_N_FRAMES, kept = n - POLICY_FRAME_CHANNELS;
    uint32_t pixel, channel;
//: endif
    if (${"state == NULL || " if reentrant}frame == NULL) {
        return POLICY_NULL_POINTER;
    }
//: if four_frames
    for (pixel = 0; pixel < POLICY_FRAME_SIZE; pixel++) {
        ${self}stack[pixel] = (${self}stack[pixel] >> 8 & kept) | (uint32_t)frame[pixel] << 24;
    }
//: else
    for (pixel = 0; pixel < POLICY_FRAME_HEIGHT * POLICY_FRAME_WIDTH; pixel++) {
        uint8_t *const frames = ${self}stack + pixel * n;
//: if n_frames > 1
        for (channel = 0; channel < kept; channel++) {
            frames[channel] = ${self}has_frame ? frames[channel + POLICY_FRAME_CHANNELS] : 0;
        }
//: endif
        for (channel = 0; channel < POLICY_FRAME_CHANNELS; channel++) {
            frames[kept + channel] = frame[pixel * POLICY_FRAME_CHANNELS + channel];
        }
    }
//: endif
    ${self}has_frame = 1;
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

//: elif several_fields
//: include "observation.c"
//: endif
/* -- the policy ----------------------------------------------------------------------------------------------------- */

//: set no_state = "state == NULL || " if reentrant else ""
//: set parameters = macros.observation_parameter ~ "int32_t outputs[POLICY_N_OUTPUTS]"
${"int policy_outputs%s(%s)" | format(macros.r, parameters) | signature}
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
    if (${no_state}outputs == NULL) {
        return POLICY_NULL_POINTER;
    }
    if (!${self}has_frame) {
        return POLICY_NO_FRAME;
    }
    POLICY_TRACE(0, ${self}stack, POLICY_STACK_BYTES);

//: elif several_fields
//: if has_indices or has_grid and not fixed
    const int code = ${no_state}observation == NULL || outputs == NULL ? POLICY_NULL_POINTER : check(observation);
    if (code != POLICY_OK) {
        return code;
    }
//: else
    if (${no_state}observation == NULL || outputs == NULL) {
        return POLICY_NULL_POINTER;
    }
//: endif
//: elif reentrant
    uint8_t *in;
    if (state == NULL || observation == NULL || outputs == NULL) {
        return POLICY_NULL_POINTER;
    }
    in = ${at | format(chains[0].input)};
//: else
    uint8_t *const in = at(${chains[0].input});
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
//: set step = namespace(n=0)
//: set halves = self ~ "arena.halves + %d"
//: set unpacked = ", (int8_t *)%s" | format(at) if packed else ""
//: for chain in chains
//: set in_place = chain.trunk.is_read_in_place
//: set whole = "(const uint8_t *)%sstack" | format(self) if image else chain.fields[0].of("observation")
//: set begin = whole if in_place else at | format(chain.input)
//: set step.n = step.n + (1 if loop.index0 else 0)
//: if several_fields
//: if not in_place
    read_trunk_${chain.number}(observation, ${begin});
//: elif chains | length > 1 and not chain.layers
    memcpy(${at | format(chain.input)}, ${whole}, ${chain.n_inputs});
//: endif
    POLICY_TRACE(${step.n}, ${begin}, ${chain.n_inputs});

//: endif
//: for layer, place in chain.layers
//: set step.n = step.n + 1
//: set source = begin if loop.first else at | format(place.input)
//: set room = halves | format(place.columns // 2) ~ (unpacked | format(place.unpacked) if packed else "")
    /* ${macros.describe(layer)} */
//: if layer.is_conv
    convolve(&${layer.name}, ${source}, ${at | format(place.output)}, ${room});
//: else
    connect(&${layer.name}, ${source}, sums, ${room});
    activate(&${layer.name}, sums, ${at | format(place.output)});
//: endif
    POLICY_TRACE(${step.n}, ${at | format(place.output)}, ${layer.output_bytes});
//: endfor
//: endfor
//: set only = chains[0]
//: set reads_image = chains | length == 1 and only.trunk.is_read_in_place and not only.layers
//: set whole = "(const uint8_t *)%sstack" | format(self) if image else only.fields[0].of("observation")
//: set source = whole if reads_image else at | format(head_place.input)
//: set room = halves | format(head_place.columns // 2) ~ (unpacked | format(head_place.unpacked) if packed else "")
    /* ${macros.describe(head_layer)} */
    connect(&${head_layer.name}, ${source}, outputs, ${room});
    POLICY_TRACE(${step.n + 1}, outputs, ${4 * head_layer.n_out});
    return POLICY_OK;
}

//: if value_layer
/* The head leaves the features where they lie. */
${"int policy_value%s(%sint32_t *value)" | format(macros.r, macros.observation_parameter) | signature}
{
    int32_t outputs[POLICY_N_OUTPUTS];
    const int code = value == NULL ? POLICY_NULL_POINTER : policy_outputs${macros.r}(${macros.observation_argument}outputs);
    if (code != POLICY_OK) {
        return code;
    }
    connect(&${value_layer.name}, ${source}, value, ${room});
    return POLICY_OK;
}

//: endif
//: if masks or probabilities
//: include "choices.c"
//: else
//: if several
static const uint32_t action_categories[POLICY_N_ACTIONS] = POLICY_ACTION_CATEGORIES;

/* Scores of all categories of the first index, then of the second, and so on. */
static int all_scores(${macros.observation_parameter}int32_t scores[${model.action_nvec | sum}])
{
//: if model.n_bits
    int32_t outputs[POLICY_N_OUTPUTS], i;
    const int code = policy_outputs${macros.r}(${macros.observation_argument}outputs);
    for (i = 0; code == POLICY_OK && i < POLICY_N_OUTPUTS; i++) {
        scores[2 * i] = 0;
        scores[2 * i + 1] = outputs[i];
    }
    return code;
//: else
    return policy_outputs${macros.r}(${macros.observation_argument}scores);
//: endif
}

int policy_act${macros.r}(${macros.observation_parameter}int32_t action[POLICY_N_ACTIONS])
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
int policy_act${macros.r}(${macros.observation_parameter}int32_t *action)
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

int policy_sample${macros.r}(
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
int policy_sample${macros.r}(${macros.observation_parameter}uint32_t random_bits, int32_t *action)
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
//: endif
//: if box
//: if fixed
static const int32_t lowest[POLICY_N_OUTPUTS] POLICY_FLASH = ${lowest | integers | inline};
static const int32_t highest[POLICY_N_OUTPUTS] POLICY_FLASH = ${highest | integers | inline};

int policy_act${macros.r}(${macros.observation_parameter}int32_t action[POLICY_N_OUTPUTS])
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
int policy_act${macros.r}(${macros.observation_parameter}float action[POLICY_N_OUTPUTS])
{
    int32_t outputs[POLICY_N_OUTPUTS], i;
    ${macros.compute_outputs() | indent}
    ${macros.clip_mean("outputs", "action") | indent}
    return POLICY_OK;
}
//: endif
//: endif
//: if reentrant
//#
//: include "simple.c"
//: endif
