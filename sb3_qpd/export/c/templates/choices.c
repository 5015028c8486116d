//: import "macros.h" as macros with context
//: set n_indices = model.action_nvec | length
//: set allowed_parameter = "const uint8_t *allowed, " if masks else ""
//: set allowed_of_index = "allowed == NULL ? NULL : allowed + first, " if masks else ""
//: set allowed_argument = "allowed, " if masks else ""
//: set i_is_allowed = "is_allowed(allowed, i)"
enum { N_INDICES = ${n_indices}, N_CATEGORIES = ${n_categories} };
//: if n_indices > 1
static const uint32_t action_categories[N_INDICES] POLICY_FLASH = ${model.action_nvec | integers | inline};
//: endif
static const uint8_t weight_shifts[N_INDICES] POLICY_FLASH = ${weight_shifts | integers | inline};

/* exp(-d) in integers, for d in units of 1/256: one table for its quarters times one table for the rest. */
static const uint32_t exp_high[64] POLICY_FLASH = ${exp_high | integers | block};
static const uint16_t exp_low[64] POLICY_FLASH = ${exp_low | integers | block};

static uint32_t n_categories(uint32_t index)
{
//: if n_indices == 1
    (void)index;
    return N_CATEGORIES;
//: else
    return POLICY_READ_32(action_categories + index);
//: endif
}

//: if masks
static int is_allowed(const uint8_t *allowed, uint32_t i)
{
    return allowed == NULL || allowed[i] != 0;
}

/* Each index needs a category that is allowed. */
static int check_masks(const uint8_t *allowed)
{
    uint32_t index, i, n;
    for (index = 0; allowed != NULL && index < N_INDICES; allowed += n_categories(index), index++) {
        for (i = 0, n = 0; i < n_categories(index); i++) {
            n += allowed[i] != 0;
        }
        if (n == 0) {
            return POLICY_NO_ACTION;
        }
    }
    return POLICY_OK;
}

//: endif
/* Scores of all categories of the first index, then of the second, and so on. */
//: set parameters = macros.observation_parameter ~ macros.mask_parameter ~ "int32_t scores[N_CATEGORIES]"
${"static int all_scores(%s)" | format(parameters) | signature}
{
//: set to = "outputs" if model.n_bits else "scores"
//: set compute = "policy_outputs%s(%s%s)" | format(macros.r, macros.observation_argument, to)
//: if model.n_bits
    int32_t outputs[POLICY_N_OUTPUTS], i;
//: endif
//: if masks
    int code = check_masks(allowed);
    code = code == POLICY_OK ? ${compute} : code;
//: elif model.n_bits
    const int code = ${compute};
//: else
    return ${compute};
//: endif
//: if model.n_bits
    for (i = 0; code == POLICY_OK && i < POLICY_N_OUTPUTS; i++) {
        scores[2 * i] = 0;
        scores[2 * i + 1] = outputs[i];
    }
//: endif
//: if masks or model.n_bits
    return code;
//: endif
}

/* The category with the largest score${", of those that are allowed" if masks}. */
static uint32_t best(const int32_t *scores, ${allowed_parameter}uint32_t n)
{
//: if masks
    uint32_t i, found = n;
    for (i = 0; i < n; i++) {
        if (${i_is_allowed} && (found == n || scores[i] > scores[found])) {
            found = i;
        }
    }
//: else
    uint32_t i, found = 0;
    int32_t largest = scores[0];
    for (i = 1; i < n; i++) {
        found = scores[i] > largest ? i : found;
        largest = scores[i] > largest ? scores[i] : largest;
    }
//: endif
    return found;
}

/* Weights of the categories of one index, proportional to exp(score)${"; zero where a category is not allowed" if masks}. */
//: set multiplier, shift = model.nat_scale
static void weigh(const int32_t *scores, ${allowed_parameter}uint32_t index, uint32_t *weights)
{
    const uint32_t n = n_categories(index);
    const int32_t largest = scores[best(scores, ${allowed_argument}n)];
    uint32_t i;
    for (i = 0; i < n; i++) {
        const uint32_t below = (uint32_t)largest - (uint32_t)scores[i];
        const uint64_t units = ((uint64_t)below * ${multiplier}u + ((uint64_t)1 << ${shift - 1})) >> ${shift};
        weights[i] = 0;
        if (${i_is_allowed ~ " && " if masks}units < 4096) { /* from 16 nats on the weight is zero */
            const uint64_t high = POLICY_READ_32(exp_high + (units >> 6));
            weights[i] = (uint32_t)((high * POLICY_READ_16(exp_low + (units & 63))) >> POLICY_READ_8(weight_shifts + index));
        }
    }
}

/* The first category at which the running sum of the weights passes a random share of their total. */
static uint32_t draw(const uint32_t *weights, uint32_t n, uint32_t random_bits)
{
    uint32_t i, total = 0, running = 0, threshold;
    for (i = 0; i < n; i++) {
        total += weights[i];
    }
    threshold = (uint32_t)(((uint64_t)random_bits * total) >> 32);
    for (i = 0; running + weights[i] <= threshold; i++) {
        running += weights[i];
    }
    return i;
}

//: set given = macros.observation_parameter ~ macros.mask_parameter
//: set arguments = macros.observation_argument ~ macros.mask_argument
//: set action_of_index = "action[index]" if several else "*action"
${"int policy_act%s(%s%s)" | format(macros.r, given, macros.action_parameter) | signature}
{
    int32_t scores[N_CATEGORIES];
    uint32_t index, first = 0;
    const int code = action == NULL ? POLICY_NULL_POINTER : all_scores(${arguments}scores);
    if (code != POLICY_OK) {
        return code;
    }
    for (index = 0; index < N_INDICES; first += n_categories(index), index++) {
        ${action_of_index} = (int32_t)best(scores + first, ${allowed_of_index}n_categories(index));
    }
//: if memory
    move_on(${macros.remembered_arguments});
//: endif
    return POLICY_OK;
}

//: set is_public = masks or probabilities
//: set weights = "policy_weights" ~ macros.r if is_public else "all_weights"
${"%sint %s(%suint32_t weights[N_CATEGORIES])" | format("" if is_public else "static ", weights, given) | signature}
{
    int32_t scores[N_CATEGORIES];
    uint32_t index, first = 0;
    const int code = weights == NULL ? POLICY_NULL_POINTER : all_scores(${arguments}scores);
    if (code != POLICY_OK) {
        return code;
    }
    for (index = 0; index < N_INDICES; first += n_categories(index), index++) {
        weigh(scores + first, ${allowed_of_index}index, weights + first);
    }
    return POLICY_OK;
}

//: set bits_of_index = "random_bits[index]" if several else "random_bits"
//: set null = "action == NULL || random_bits == NULL" if several else "action == NULL"
${"int policy_sample%s(%s%s%s)" | format(macros.r, given, macros.random_parameter, macros.action_parameter) | signature}
{
    uint32_t weights[N_CATEGORIES], index, first = 0;
    const int code = ${null} ? POLICY_NULL_POINTER : ${weights}(${arguments}weights);
    if (code != POLICY_OK) {
        return code;
    }
    for (index = 0; index < N_INDICES; first += n_categories(index), index++) {
        ${action_of_index} = (int32_t)draw(weights + first, n_categories(index), ${bits_of_index});
    }
//: if memory
    move_on(${macros.remembered_arguments});
//: endif
    return POLICY_OK;
}
