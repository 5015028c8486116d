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
int main(void)
{
    int vector, wrong = 0;
    for (vector = 0; vector < POLICY_N_VECTORS; vector++) {
        int32_t outputs[POLICY_N_OUTPUTS];
//: if discrete
        int32_t action, sample;
//: elif several
        int32_t action[POLICY_N_ACTIONS], sample[POLICY_N_ACTIONS];
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
//: if discrete
        same = same && policy_act(${observation_argument}${mask_argument}&action) == POLICY_OK && action == test_actions[vector];
        same = same && policy_sample(${observation_argument}${mask_argument}test_random_bits[vector], &sample) == POLICY_OK;
        same = same && sample == test_samples[vector];
//: else
        same = same && policy_act(${observation_argument}${mask_argument}action) == POLICY_OK;
        same = same && memcmp(action, test_actions[vector], sizeof action) == 0;
//: endif
//: if several
        same = same && policy_sample(${observation_argument}${mask_argument}test_random_bits[vector], sample) == POLICY_OK;
        same = same && memcmp(sample, test_samples[vector], sizeof sample) == 0;
//: endif
//: if masks or probabilities
        same = same && policy_weights(${observation_argument}${mask_argument}weights) == POLICY_OK;
        same = same && memcmp(weights, test_weights[vector], sizeof weights) == 0;
//: endif
//: if value_layer
        same = same && policy_value(${observation_argument}&value) == POLICY_OK && value == test_values[vector];
//: endif
        wrong += !same;
    }
    printf("%d of %d test vectors differ\n", wrong, POLICY_N_VECTORS);
    return wrong != 0;
}
