#include "policy.h"

#include <math.h>
#include <stddef.h>
#include <string.h>

//: for step in all_steps if step.kind in ("dense", "conv")
static const float ${step.name}_weight[] = {
    ${step.weight}};
static const float ${step.name}_bias[] = {
    ${step.bias}};
//: endfor
//: for one in inputs
//: set field = one.field
//: if one.means
//# a mean in two numbers
static const float mean_of_${field.name}[${field.size}] = {
    ${one.means[0]}};
static const float mean_rest_of_${field.name}[${field.size}] = {
    ${one.means[1]}};
//: endif
//: if one.factor
static const float factor_of_${field.name}[${field.size}] = {
    ${one.factor}};
//: endif
//: if field.kind == "one_hot"
static const int32_t categories_of_${field.name}[${field.size}] = {${one.nvec}};
//: endif
//: endfor
//: if actor.is_box
static const float action_low[POLICY_N_OUTPUTS] = POLICY_ACTION_LOW;
static const float action_high[POLICY_N_OUTPUTS] = POLICY_ACTION_HIGH;
//: elif not discrete and not actor.is_binary
static const int32_t action_categories[POLICY_N_ACTIONS] = POLICY_ACTION_CATEGORIES;
//: endif

static float buffer_a[${buffer_size}], buffer_b[${buffer_size}];
//: if is_dict
static float features[${n_features}];
//: endif

//: for kind, expression in activations.items()
static void apply_${kind}(float *values, size_t n, float a, float b)
{
    size_t i;
    (void)a;
    (void)b;
    for (i = 0; i < n; i++) {
        const float x = values[i];
        values[i] = ${expression};
    }
}

//: endfor
static void dense(const float *weight, const float *bias, const float *input, float *output, size_t n_in, size_t n_out)
{
    size_t i, k;
    for (i = 0; i < n_out; i++) {
        float sum = 0.0f;
        for (k = 0; k < n_in; k++) {
            sum += weight[i * n_in + k] * input[k];
        }
        output[i] = sum + bias[i];
    }
}

//: if has_conv
static void conv(const float *weight, const float *bias, const float *input, float *output, size_t n_in, size_t height,
                 size_t width, size_t rows, size_t columns, size_t row_step, size_t column_step, size_t n_out,
                 size_t out_height, size_t out_width)
{
    size_t o, y, x, c, i, j;
    for (o = 0; o < n_out; o++) {
        for (y = 0; y < out_height; y++) {
            for (x = 0; x < out_width; x++) {
                float sum = 0.0f;
                for (c = 0; c < n_in; c++) {
                    for (i = 0; i < rows; i++) {
                        const float *line = input + (c * height + y * row_step + i) * width + x * column_step;
                        const float *kernel = weight + ((o * n_in + c) * rows + i) * columns;
                        for (j = 0; j < columns; j++) {
                            sum += kernel[j] * line[j];
                        }
                    }
                }
                output[(o * out_height + y) * out_width + x] = sum + bias[o];
            }
        }
    }
}

//: endif
//: if image
static uint8_t frames[POLICY_N_FRAMES][POLICY_FRAME_SIZE]; /* the newest one is the last */
static int has_frame = 0;

void policy_reset(void)
{
    memset(frames, 0, sizeof frames);
    has_frame = 0;
}

int policy_push_frame(const uint8_t frame[POLICY_FRAME_SIZE])
{
    if (frame == NULL) {
        return POLICY_NULL_POINTER;
    }
    if (POLICY_N_FRAMES > 1) {
        memmove(frames[0], frames[POLICY_N_FRAMES > 1], (POLICY_N_FRAMES - 1) * sizeof frames[0]);
    }
    memcpy(frames[POLICY_N_FRAMES - 1], frame, sizeof frames[0]);
    has_frame = 1;
    return POLICY_OK;
}

static int read_observation(float *values)
{
    const size_t area = POLICY_FRAME_HEIGHT * POLICY_FRAME_WIDTH;
    size_t f, c, i;
    if (!has_frame) {
        return POLICY_NO_FRAME;
    }
    for (f = 0; f < POLICY_N_FRAMES; f++) {
        for (c = 0; c < POLICY_FRAME_CHANNELS; c++) {
            for (i = 0; i < area; i++) {
                values[(f * POLICY_FRAME_CHANNELS + c) * area + i] = (float)frames[f][i * POLICY_FRAME_CHANNELS + c] * ${inputs[0].pixel};
            }
        }
    }
    return POLICY_OK;
}

//: endif
//: for one in inputs if not image
//: set field = one.field
static int read_${field.name}(const ${field.raw_type} *given, float *values)
{
//: if field.kind == "one_hot"
    size_t i, at = 0;
    for (i = 0; i < ${field.size}; i++) {
        if (given[i] < 0 || given[i] >= categories_of_${field.name}[i]) {
            return POLICY_NO_CATEGORY;
        }
        at += (size_t)categories_of_${field.name}[i];
    }
    memset(values, 0, at * sizeof *values);
    for (i = 0, at = 0; i < ${field.size}; i++) {
        values[at + (size_t)given[i]] = 1.0f;
        at += (size_t)categories_of_${field.name}[i];
    }
//: elif field.kind == "image"
//: set channels, height, width = field.part.shape
    size_t c, i;
    for (c = 0; c < ${channels}; c++) {
        for (i = 0; i < ${height * width}; i++) {
            values[c * ${height * width} + i] = (float)given[i * ${channels} + c] * ${one.pixel};
        }
    }
//: else
    size_t i;
    for (i = 0; i < ${field.size}; i++) {
        float x = given[i];
        if (!isfinite(x)) {
            return POLICY_NOT_FINITE;
        }
//: if one.means
        x -= mean_of_${field.name}[i];
        x -= mean_rest_of_${field.name}[i];
//: endif
//: if one.factor
        x *= factor_of_${field.name}[i];
//: endif
//: if one.clip
        x = x < -${one.clip} ? -${one.clip} : (x > ${one.clip} ? ${one.clip} : x);
//: endif
        values[i] = x;
    }
//: endif
    return POLICY_OK;
}

//: endfor
//: macro run(steps)
//: for step in steps
//: if step.kind == "dense"
    dense(${step.name}_weight, ${step.name}_bias, x, y, ${step.n_in}, ${step.n_out});
//: elif step.kind == "conv"
    conv(${step.name}_weight, ${step.name}_bias, x, y, ${step.sizes});
//: else
    apply_${step.kind}(x, ${step.n}, ${step.parameters[0]}, ${step.parameters[1]});
//: endif
//: if step.kind in ("dense", "conv")
    z = x, x = y, y = z;
//: endif
//: endfor
//: endmacro
//: set own = "const " ~ inputs[0].field.raw_type ~ " observation[POLICY_OBSERVATION_SIZE], "
//: set given = "" if image else "const struct policy_observation *observation, " if is_dict else own
//: set passed = "" if image else "observation, "
int policy_outputs(${given}float outputs[POLICY_N_OUTPUTS])
{
    float *x = buffer_a, *y = buffer_b, *z;
    int code;
    if (outputs == NULL${"" if image else " || observation == NULL"}) {
        return POLICY_NULL_POINTER;
    }
//: for one in inputs
//: if is_dict
//: set place = "x" if one.steps else "features + %d" | format(one.at)
    code = read_${one.field.name}(${one.field.of("observation")}, ${place});
//: else
    code = read_observation(${passed}x);
//: endif
    if (code != POLICY_OK) {
        return code;
    }
${run(one.steps)}
//:- if is_dict and one.steps
    memcpy(features + ${one.at}, x, ${one.n_out} * sizeof *x);
//: endif
//: endfor
//: if is_dict
    memcpy(x, features, sizeof features);
//: endif
${run(steps)}
//: if actor.unscales
    {
        size_t i;
        for (i = 0; i < POLICY_N_OUTPUTS; i++) {
            x[i] = action_low[i] + 0.5f * (x[i] + 1.0f) * (action_high[i] - action_low[i]);
        }
    }
//: endif
    memcpy(outputs, x, POLICY_N_OUTPUTS * sizeof *outputs);
    return POLICY_OK;
}

//: if actor.is_box
int policy_act(${given}float action[POLICY_N_OUTPUTS])
{
    size_t i;
    const int code = policy_outputs(${passed}action);
    for (i = 0; code == POLICY_OK && i < POLICY_N_OUTPUTS; i++) {
        action[i] = action[i] < action_low[i] ? action_low[i] : (action[i] > action_high[i] ? action_high[i] : action[i]);
    }
    return code;
}
//: else
int policy_act(${given}${"int32_t *action" if discrete else "int32_t action[POLICY_N_ACTIONS]"})
{
    float outputs[POLICY_N_OUTPUTS];
    size_t i;
    int code;
    if (action == NULL) {
        return POLICY_NULL_POINTER;
    }
    code = policy_outputs(${passed}outputs);
    if (code != POLICY_OK) {
        return code;
    }
//: if actor.is_binary
    for (i = 0; i < POLICY_N_ACTIONS; i++) {
        action[i] = outputs[i] > 0.0f;
    }
//: elif discrete
    *action = 0;
    for (i = 1; i < POLICY_N_OUTPUTS; i++) {
        if (outputs[i] > outputs[*action]) {
            *action = (int32_t)i;
        }
    }
//: else
    {
        const float *first = outputs;
        for (i = 0; i < POLICY_N_ACTIONS; first += action_categories[i], i++) {
            int32_t k;
            action[i] = 0;
            for (k = 1; k < action_categories[i]; k++) {
                if (first[k] > first[action[i]]) {
                    action[i] = k;
                }
            }
        }
    }
//: endif
    return POLICY_OK;
}
//: endif
