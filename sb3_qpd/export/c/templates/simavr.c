/*
 * Runs a program on an emulated AVR with simavr's library: ./simavr MCU MHZ program.elf. The program reads and writes files
 * of this computer by calls that resemble ARM's semihosting: it writes the address of its arguments to GPIOR1 and GPIOR2, then
 * the operation to GPIOR0, and finds the result in GPIOR1 and GPIOR2.
 */
#include <simavr/sim_avr.h>
#include <simavr/sim_elf.h>
#include <simavr/sim_io.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { GPIOR0 = 0x3e, GPIOR1 = 0x4a, GPIOR2 = 0x4b }; /* addresses on an ATmega328P */
enum { SYS_OPEN = 1, SYS_WRITE = 5, SYS_READ = 6, SYS_CYCLES = 0x10, SYS_EXIT = 0x18, MODE_RB = 1, MAX_FILES = 4 };

static FILE *files[MAX_FILES];
static int n_files = 0, has_ended = 0;

/* An argument of 32 bits. */
static uint32_t argument(const struct avr_t *avr, unsigned address, unsigned index)
{
    uint32_t value;
    memcpy(&value, avr->data + address + 4 * index, 4);
    return value;
}

static unsigned transfer(struct avr_t *avr, uint8_t operation, unsigned address)
{
    FILE *const file = files[argument(avr, address, 0) % MAX_FILES];
    uint8_t *const data = avr->data + argument(avr, address, 1) % (avr->ramend + 1u);
    const size_t n = argument(avr, address, 2);
    if (file == NULL || data + n > avr->data + avr->ramend + 1) {
        return (unsigned)n;
    }
    return (unsigned)(n - (operation == SYS_READ ? fread(data, 1, n, file) : fwrite(data, 1, n, file)));
}

static unsigned open_file(const struct avr_t *avr, unsigned address)
{
    const char *const name = (const char *)avr->data + argument(avr, address, 0) % (avr->ramend + 1u);
    if (n_files < MAX_FILES) {
        files[n_files] = fopen(name, argument(avr, address, 1) == MODE_RB ? "rb" : "wb");
    }
    return (unsigned)n_files++;
}

static void call(struct avr_t *avr, avr_io_addr_t register_address, uint8_t operation, void *parameter)
{
    const unsigned address = avr->data[GPIOR1] | (unsigned)avr->data[GPIOR2] << 8;
    const uint32_t cycle = (uint32_t)avr->cycle;
    unsigned result = 0;
    (void)register_address, (void)parameter;
    if (operation == SYS_OPEN) {
        result = open_file(avr, address);
    } else if (operation == SYS_CYCLES) {
        memcpy(avr->data + address, &cycle, 4);
    } else if (operation == SYS_EXIT) {
        has_ended = 1;
    } else {
        result = transfer(avr, operation, address);
    }
    avr->data[GPIOR1] = (uint8_t)result;
    avr->data[GPIOR2] = (uint8_t)(result >> 8);
}

int main(int n_arguments, char **arguments)
{
    static elf_firmware_t firmware;
    struct avr_t *avr;
    int state = cpu_Running, i;
    if (n_arguments != 4 || elf_read_firmware(arguments[3], &firmware) != 0) {
        fprintf(stderr, "usage: simavr MCU MHZ program.elf\n");
        return 2;
    }
    avr = avr_make_mcu_by_name(arguments[1]);
    if (avr == NULL || avr_init(avr) != 0) {
        fprintf(stderr, "no such AVR: %s\n", arguments[1]);
        return 2;
    }
    firmware.frequency = (uint32_t)atoi(arguments[2]) * 1000000u;
    avr_load_firmware(avr, &firmware);
    avr_register_io_write(avr, GPIOR0, call, NULL);
    while (!has_ended && state != cpu_Done && state != cpu_Crashed) {
        state = avr_run(avr);
    }
    for (i = 0; i < MAX_FILES; i++) {
        if (files[i] != NULL && fclose(files[i]) != 0) {
            return 1;
        }
    }
    return has_ended ? 0 : 1;
}
