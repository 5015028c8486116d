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
//: set held = "state->" if reentrant else ""
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

//: if hidden or has_grid or memory
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

//: elif memory
static uint8_t window[POLICY_WINDOW_BYTES];
static int has_begun = 0;

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
        ${held}stack[pixel] = (${held}stack[pixel] >> 8 & kept) | (uint32_t)frame[pixel] << 24;
    }
//: else
    for (pixel = 0; pixel < POLICY_FRAME_HEIGHT * POLICY_FRAME_WIDTH; pixel++) {
        uint8_t *const frames = ${held}stack + pixel * n;
//: if n_frames > 1
        for (channel = 0; channel < kept; channel++) {
            frames[channel] = ${held}has_frame ? frames[channel + POLICY_FRAME_CHANNELS] : 0;
        }
//: endif
        for (channel = 0; channel < POLICY_FRAME_CHANNELS; channel++) {
            frames[kept + channel] = frame[pixel * POLICY_FRAME_CHANNELS + channel];
        }
    }
//: endif
    ${held}has_frame = 1;
    return POLICY_OK;
}

//: endif
//: if not image
//: include "observation.c"
//: endif
//: if memory
//: include "memory.c"
//: endif
/* -- the policy ----------------------------------------------------------------------------------------------------- */

//: set no_state = "state == NULL || " if reentrant else ""
//: set parameters = macros.observation_parameter ~ "int32_t outputs[POLICY_N_OUTPUTS]"
${"int policy_outputs%s(%s)" | format(macros.r, parameters) | signature}
{
//: if hidden_dense
    int32_t sums[${hidden_dense | map(attribute="n_out") | max}];
//: endif
//: if image
    if (${no_state}outputs == NULL) {
        return POLICY_NULL_POINTER;
    }
    if (!${held}has_frame) {
        return POLICY_NO_FRAME;
    }
//: elif is_checked
    const int code = ${no_state}observation == NULL || outputs == NULL ? POLICY_NULL_POINTER : check(observation);
    if (code != POLICY_OK) {
        return code;
    }
//: else
    if (${no_state}observation == NULL || outputs == NULL) {
        return POLICY_NULL_POINTER;
    }
//: endif
//: if memory
    read_trunk_0(observation, newest(${"state" if reentrant}));
//: endif
//: set step = namespace(n=0)
//: set halves = held ~ "arena.halves + %d"
//: set unpacked = ", (int8_t *)%s" | format(at) if packed else ""
//: set own = "(const uint8_t *)%sstack" | format(held) if image else held ~ "window" if memory
//: for chain in chains
//: set in_place = chain.trunk.is_read_in_place
//: set whole = own or chain.fields[0].of("observation")
//: set begin = whole if in_place else at | format(chain.input)
//: set step.n = step.n + (1 if loop.index0 else 0)
//: if chain.trunk.is_copied and not memory
    read_trunk_${chain.number}(observation, ${begin});
//: elif chains | length > 1 and not chain.layers
    memcpy(${at | format(chain.input)}, ${whole}, ${chain.n_inputs});
//: endif
    POLICY_TRACE(${step.n}, ${begin}, ${chain.n_inputs});

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
//: set reads_in_place = chains | length == 1 and only.trunk.is_read_in_place and not only.layers
//: set source = own or only.fields[0].of("observation") if reads_in_place else at | format(head_place.input)
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
//: if not box
//: include "choices.c"
//: else
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
//: if memory
    move_on(${macros.remembered_arguments});
//: endif
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
//: if memory
    move_on(${macros.remembered_arguments});
//: endif
    return POLICY_OK;
}
//: endif
//: endif
//: if reentrant
//#
//: include "simple.c"
//: endif
