//: set observation = ("&" if is_dict else "") ~ "test_observations[vector], "
//: set observation_argument = "" if image else observation
//: set mask_argument = "test_masks[vector], " if masks else ""
/*
 * An example: computes the action of every test vector and compares it. Compile it with any C compiler:
 *
 *     cc -O3 main.c policy.c -o policy && ./policy
 */
#include <stdio.h>
#include <string.h>

#include "policy.h"
#include "test_vectors.h"

//: if image
/* In an episode call policy_reset() once, then policy_push_frame() and policy_act() for each new frame. */
static void observe(int vector)
{
    int frame;
    policy_reset();
    for (frame = 0; frame < POLICY_N_FRAMES; frame++) {
        (void)policy_push_frame(test_frames[vector][frame]);
    }
}

//: endif
/* Whether the outputs and the action of a test vector are those that are expected. */
static int is_same(int vector)
{
    int32_t outputs[POLICY_N_OUTPUTS];
//: if discrete
    int32_t action;
//: elif several
    int32_t action[POLICY_N_ACTIONS];
//: else
    ${action_type} action[POLICY_N_OUTPUTS];
//: endif
//: if value_layer
    int32_t value;
//: endif
//: if masks or probabilities
    uint32_t weights[POLICY_N_CATEGORIES];
//: endif
    int same;
//: if image
    observe(vector);
//: endif
    same = policy_outputs(${observation_argument}outputs) == POLICY_OK;
    same = same && memcmp(outputs, test_outputs[vector], sizeof outputs) == 0;
//: if masks or probabilities
    same = same && policy_weights(${observation_argument}${mask_argument}weights) == POLICY_OK;
    same = same && memcmp(weights, test_weights[vector], sizeof weights) == 0;
//: endif
//: if value_layer
    same = same && policy_value(${observation_argument}&value) == POLICY_OK && value == test_values[vector];
//: endif
//: if discrete
    return same && policy_act(${observation_argument}${mask_argument}&action) == POLICY_OK && action == test_actions[vector];
//: else
    same = same && policy_act(${observation_argument}${mask_argument}action) == POLICY_OK;
    return same && memcmp(action, test_actions[vector], sizeof action) == 0;
//: endif
}

//: if not box
/* Whether the action that is drawn with the random bits of a test vector is the expected one. */
static int is_same_sample(int vector)
{
//: set sampled = observation_argument ~ mask_argument ~ "test_random_bits[vector], "
//: if discrete
    int32_t sample;
//: else
    int32_t sample[POLICY_N_ACTIONS];
//: endif
//: if image
    observe(vector);
//: endif
//: if discrete
    return policy_sample(${sampled}&sample) == POLICY_OK && sample == test_samples[vector];
//: else
    return policy_sample(${sampled}sample) == POLICY_OK && memcmp(sample, test_samples[vector], sizeof sample) == 0;
//: endif
}

//: endif
int main(void)
{
    int vector, wrong = 0, same[POLICY_N_VECTORS];
//: if memory
    policy_reset(); /* the test vectors are one episode */
//: endif
    for (vector = 0; vector < POLICY_N_VECTORS; vector++) {
        same[vector] = is_same(vector);
    }
//: if not box
//: if memory
    policy_reset(); /* the same observations, with other actions */
//: endif
    for (vector = 0; vector < POLICY_N_VECTORS; vector++) {
        same[vector] = is_same_sample(vector) && same[vector];
    }
//: endif
    for (vector = 0; vector < POLICY_N_VECTORS; vector++) {
        wrong += !same[vector];
    }
    printf("%d of %d test vectors differ\n", wrong, POLICY_N_VECTORS);
    return wrong != 0;
}
