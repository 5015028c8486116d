//# Macros for the C files. The last line of a macro ends without a newline.

//: macro title()
//: set of_teacher = " of " ~ teacher if teacher else ""
//: set for_env = " for " ~ env_id if env_id else ""
${name}: a student${of_teacher}${for_env}, ${model.requantization} requantization
//:- endmacro

//: macro describe(layer)
//: set integers = layer.layer
//: set shapes = "%12s -> %-12s" | format(layer.shape | join(" x "), layer.output_shape | join(" x "))
//: set kernel = "kernel %d, stride %d, " | format(integers.weight.shape[2], integers.stride) if layer.is_conv else ""
//: set output = "32-bit sums" if layer.is_head else "%d-bit outputs" | format(integers.activation_bits)
${"%-6s" | format(layer.name)} ${shapes} ${kernel}${integers.weight_bits}-bit weights, ${output}
//:- endmacro

//# The first parameters of functions that take an observation. Images were pushed frame by frame before, and are not passed.
//: set r = "_r" if reentrant else ""
//: set of_array = "const " ~ observation_type ~ " observation[POLICY_OBSERVATION_SIZE]"
//: set own_observation = "const struct policy_observation *observation" if is_dict else of_array
//: set given_parameter = "" if image else own_observation ~ ", "
//: set given_argument = "" if image else "observation, "
//: set observation_parameter = ("struct policy_state *state, " if reentrant else "") ~ given_parameter
//: set observation_argument = ("state, " if reentrant else "") ~ given_argument
//: set mask_parameter = "const uint8_t allowed[POLICY_N_CATEGORIES], " if masks else ""
//: set mask_argument = "allowed, " if masks else ""
//: set size_of_action = "POLICY_N_OUTPUTS" if box else "POLICY_N_ACTIONS"
//: set action_parameter = "int32_t *action" if discrete else "%s action[%s]" | format(action_type, size_of_action)
//: set random_parameter = "const uint32_t random_bits[POLICY_N_ACTIONS], " if several else "uint32_t random_bits, "
//: set weights_parameter = "uint32_t weights[POLICY_N_CATEGORIES]"

//# What brings an observation to its grid, in fixed mode.
//: set raw_of = "struct policy_raw_observation *observation, " if is_dict else real_type ~ " observation[POLICY_OBSERVATION_SIZE], "
//: set grid_of = "struct policy_observation *grid" if is_dict else "int8_t grid[POLICY_OBSERVATION_SIZE]"
//: set quantize_parameters = "const " ~ raw_of ~ grid_of
//: set quantize_int16_parameters = "const int16_t *values, int8_t *grid, uint32_t n"
//: set of_vector = "const int16_t values[POLICY_OBSERVATION_SIZE], int8_t grid[POLICY_OBSERVATION_SIZE]"
//: set quantize_int16_parameters = of_vector if is_vector else quantize_int16_parameters

//# What a student with a memory remembers of a step, and the functions that end a step.
//: set state_only = "struct policy_state *state" if reentrant else ""
//: set remembers_action = memory and memory.n_action
//: set taken_action = "const %s *action" | format(action_type) if remembers_action else ""
//: set remembered_parameters = [state_only, taken_action] | select | join(", ") or "void"
//: set remembered_arguments = (["state"] if reentrant else []) + (["action"] if remembers_action else [])
//: set remembered_arguments = remembered_arguments | join(", ")
//: set constant_action = "const %s" | format(action_parameter) if remembers_action else ""
//: set step_parameters = [own_observation, constant_action] | select | join(", ")
//: set remember_parameters = [state_only, step_parameters] | select | join(", ")

//# The functions of the interface that need memory: name, result, parameters and arguments.
//: set given = given_argument ~ mask_argument
//: set frame = ("push_frame", "int", "const uint8_t frame[POLICY_FRAME_SIZE]", "frame")
//: set reset = ("reset", "void", "", "")
//: set remember = ("remember", "int", step_parameters, "observation, action" if remembers_action else "observation")
//: set functions = [reset, frame] if image else [reset, remember] if memory else []
//: set outputs = ("outputs", "int", given_parameter ~ "int32_t outputs[POLICY_N_OUTPUTS]", given_argument ~ "outputs")
//: set act = ("act", "int", given_parameter ~ mask_parameter ~ action_parameter, given ~ "action")
//: set drawn_parameters = given_parameter ~ mask_parameter ~ random_parameter ~ action_parameter
//: set sample = [] if box else [("sample", "int", drawn_parameters, given ~ "random_bits, action")]
//: set weights = ("weights", "int", given_parameter ~ mask_parameter ~ weights_parameter, given ~ "weights")
//: set value = [("value", "int", given_parameter ~ "int32_t *value", given_argument ~ "value")] if value_layer else []
//: set functions = functions + [outputs, act] + sample + ([weights] if masks or probabilities else []) + value

//# A constant array. Its dimensions are those of the nested lists of literals.
//: macro array(type, name, texts)
static const ${type} ${name}[${texts | shape | join("][")}] = ${texts | block};
//:- endmacro

//# The same in flash, where the processor reads it with other instructions than RAM.
//: macro flash_array(type, name, texts)
static const ${type} ${name}[${texts | length}] POLICY_FLASH = ${texts | block};
//:- endmacro

//# Adds four or eight weights times four columns to the sums.
//: macro multiply_and_add(fours)
__asm__(${fours}
        : "+r"(sum_0), "+r"(sum_1), "+r"(sum_2), "+r"(sum_3), "+r"(weights), "+r"(columns)
        :
        : "r0", "r1", "r2", "r3", "memory");
//:- endmacro

//# Adds four or eight inputs times four rows of weights to the sums.
//: macro add_rows(fours)
__asm__(${fours}
        : [sum_0] "+r"(sum_0), [sum_1] "+r"(sum_1), [sum_2] "+r"(sum_2), [sum_3] "+r"(sum_3), [weights] "+r"(weights), [in] "+r"(in)
        : [n] "r"(n)
        : "r0", "r1", "r2", "r3", "memory");
//:- endmacro

//# Adds four inputs times one row of weights to the sum.
//: macro add_row(fours)
__asm__(${fours} : [sum_0] "+r"(sum_0), [weights] "+r"(weights), [in] "+r"(in) : : "r0", "r1", "r2", "r3", "memory");
//:- endmacro

//# A row of weights times inputs on AVR. ``read`` reads the weight that ``weights`` points to, in RAM or in flash.
//: macro dot_of_bytes(name, read)
static int32_t ${name}(const uint8_t *in, const int8_t *weights, uint16_t n, int32_t sum)
{
    const uint8_t *const end = in + n;
    for (; in != end; in++, weights++) {
        const int8_t weight = (int8_t)${read};
        sum += (int16_t)(*in * weight);
    }
    return sum;
}
//:- endmacro

//: macro store_sums()
sums[0] = sum_0;
sums[1] = sum_1;
sums[2] = sum_2;
sums[3] = sum_3;
//:- endmacro

//# The first statements of a function that writes an action.
//: macro compute_outputs()
const int code = action == NULL ? POLICY_NULL_POINTER : policy_outputs${r}(${observation_argument}outputs);
if (code != POLICY_OK) {
    return code;
}
//:- endmacro

//# Converts outputs to a Box action in units of the environment, clipped to its bounds.
//: macro clip_mean(outputs, result)
for (i = 0; i < POLICY_N_OUTPUTS; i++) {
    const float mean = (float)${outputs}[i] * POLICY_READ_FLOAT(action_scale + i);
    const float low = POLICY_READ_FLOAT(action_low + i), high = POLICY_READ_FLOAT(action_high + i);
    const float raised = mean > low ? mean : low; /* of -0 and 0 the bound, as numpy has it */
    ${result}[i] = raised < high ? raised : high;
}
//:- endmacro
