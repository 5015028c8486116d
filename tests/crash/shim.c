/* Ends the process at the n-th system call that writes, or lets that call fail. Preloaded in front of the C library. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define ENDED 77 /* exit code of a process that was ended here */

static long target = -1, counter = 0;
static int failure = 0, exchange = 1;
static char calls[1 << 16];
static size_t n_calls = 0;

/* n < 0 counts only; error 0 ends the process at call n, any other lets call n fail with it */
void shim_arm(long n, int error, int has_exchange) { target = n; failure = error; exchange = has_exchange; counter = 0; n_calls = 0; }
long shim_count(void) { return counter; }
const char *shim_calls(void) { calls[n_calls] = 0; return calls; }
void shim_disarm(void) { target = -2; }

/* whether the call fails; the process may end here. -2: not armed */
static int reached(char letter) {
    if (target == -2) return 0;
    if (n_calls < sizeof calls - 1) calls[n_calls++] = letter;
    if (counter++ != target) return 0;
    if (!failure) _exit(ENDED);
    errno = failure;
    return 1;
}

#define REAL(name) ((__typeof__(&name)) dlsym(RTLD_NEXT, #name))
#define WRITES(flags) ((flags) & (O_WRONLY | O_RDWR | O_CREAT))
#define MODE(flags) mode_t mode = 0; if ((flags) & O_CREAT) { va_list a; va_start(a, flags); mode = va_arg(a, mode_t); va_end(a); }

int open(const char *path, int flags, ...) { MODE(flags) if (WRITES(flags) && reached('o')) return -1; return REAL(open)(path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags) if (WRITES(flags) && reached('o')) return -1; return REAL(open64)(path, flags, mode); }
int openat(int fd, const char *path, int flags, ...) { MODE(flags) if (WRITES(flags) && reached('o')) return -1; return REAL(openat)(fd, path, flags, mode); }
int openat64(int fd, const char *path, int flags, ...) { MODE(flags) if (WRITES(flags) && reached('o')) return -1; return REAL(openat64)(fd, path, flags, mode); }

ssize_t write(int fd, const void *data, size_t size) {
    if (fd > 2) {
        if (target >= 0 && counter == target && !failure) REAL(write)(fd, data, size / 2); /* a torn write */
        if (reached('w')) return -1;
    }
    return REAL(write)(fd, data, size);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset) { return reached('w') ? -1 : REAL(pwrite64)(fd, data, size, offset); }
ssize_t writev(int fd, const struct iovec *parts, int n) { return fd > 2 && reached('w') ? -1 : REAL(writev)(fd, parts, n); }
int fsync(int fd) { return reached('s') ? -1 : REAL(fsync)(fd); }
int fdatasync(int fd) { return reached('s') ? -1 : REAL(fdatasync)(fd); }
int ftruncate(int fd, off_t size) { return reached('t') ? -1 : REAL(ftruncate)(fd, size); }
int ftruncate64(int fd, off64_t size) { return reached('t') ? -1 : REAL(ftruncate64)(fd, size); }
int rename(const char *from, const char *to) { return reached('r') ? -1 : REAL(rename)(from, to); }
int renameat(int a, const char *from, int b, const char *to) { return reached('r') ? -1 : REAL(renameat)(a, from, b, to); }
int renameat2(int a, const char *from, int b, const char *to, unsigned flags) {
    if (!exchange) { errno = ENOSYS; return -1; }
    return reached('x') ? -1 : REAL(renameat2)(a, from, b, to, flags);
}
int link(const char *from, const char *to) { return reached('l') ? -1 : REAL(link)(from, to); }
int linkat(int a, const char *from, int b, const char *to, int flags) { return reached('l') ? -1 : REAL(linkat)(a, from, b, to, flags); }
int unlink(const char *path) { return reached('u') ? -1 : REAL(unlink)(path); }
int unlinkat(int fd, const char *path, int flags) { return reached('u') ? -1 : REAL(unlinkat)(fd, path, flags); }
int rmdir(const char *path) { return reached('u') ? -1 : REAL(rmdir)(path); }
int mkdir(const char *path, mode_t mode) { return reached('m') ? -1 : REAL(mkdir)(path, mode); }
int mkdirat(int fd, const char *path, mode_t mode) { return reached('m') ? -1 : REAL(mkdirat)(fd, path, mode); }

__attribute__((constructor)) static void start(void) { target = -2; }
