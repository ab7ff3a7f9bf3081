/* Preloaded into a server: a disk that is full while the file that DISK_SHIM_FULL names exists.

   As on a real one, the first write that does not fit is cut short, and those after it fail with ENOSPC. What goes to
   sockets, pipes and the standard streams is left alone. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

ssize_t write(int file, const void *bytes, size_t count) {
    static ssize_t (*real)(int, const void *, size_t);
    static int cut_short;
    if (!real) real = (ssize_t (*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");
    const char *full = getenv("DISK_SHIM_FULL");
    struct stat found;
    if (file <= STDERR_FILENO || !full || fstat(file, &found) || !S_ISREG(found.st_mode)) return real(file, bytes, count);
    if (access(full, F_OK)) {
        cut_short = 0;
        return real(file, bytes, count);
    }
    if (!cut_short && count > 1) {
        cut_short = 1;
        return real(file, bytes, count / 2);
    }
    errno = ENOSPC;
    return -1;
}
