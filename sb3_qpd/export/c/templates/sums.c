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

/* The assembler takes nearly all registers, so that its functions are not merged into others. */
#define POLICY_ALONE __attribute__((noinline))

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
        "add r0, %[n], %[n], lsl #1\n\t" FOUR_WEIGHTS("%[sum_3]", "[%[weights], r0]")                                          \
        FOUR_WEIGHTS("%[sum_0]", "[%[weights]], #4")

/* The sums of as many rows as there are in whole fours. Four rows of weights share the inputs that are read. */
POLICY_ALONE static void dot_rows(
    const uint8_t *inputs, const int8_t *rows, uint32_t n, uint32_t n_rows, const int32_t *bias, int32_t *sums)
{
    const int32_t *const last = bias + n_rows / 4 * 4;
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

POLICY_ALONE static void dot_4(
    const int16_t *columns, const int8_t *weights, uint32_t n, int32_t sum, int32_t sums[N_COLUMNS])
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
//#
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

