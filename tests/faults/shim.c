/* Preloaded into the server: writes down what it syncs, reads from sockets and writes to them.
 *
 * One line for each call: its thread, nanoseconds at its begin and end, its name, what the
 * descriptor is, its result, and the first bytes in hexadecimal. A line is one write(2) to a file
 * that is open for appending, so that lines never mix.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define SHOWN 2000

static int out = -1;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("SHIM_LOG");
    if (path) out = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

static long long now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static int is_socket(int fd) {
    struct stat found;
    return fstat(fd, &found) == 0 && S_ISSOCK(found.st_mode);
}

static void note(const char *name, int fd, long long start, long result, const struct iovec *parts,
                 int count) {
    static const char digits[] = "0123456789abcdef";
    char link[64], path[512], line[2 * SHOWN + 1024];
    if (out < 0) return;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, sizeof path - 1);
    path[size < 0 ? 0 : size] = 0;
    int at = snprintf(line, sizeof line, "%ld %lld %lld %s %s %ld ", (long)syscall(SYS_gettid),
                      start, now(), name, path, result);
    long left = result < 0 ? 0 : result < SHOWN ? result : SHOWN;
    for (int part = 0; part < count && left > 0; part++) {
        const unsigned char *bytes = parts[part].iov_base;
        for (size_t byte = 0; byte < parts[part].iov_len && left > 0; byte++, left--) {
            line[at++] = digits[bytes[byte] >> 4];
            line[at++] = digits[bytes[byte] & 15];
        }
    }
    line[at++] = '\n';
    syscall(SYS_write, out, line, at);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

#define ONE(data, size) &(struct iovec){(void *)(data), (size_t)(size)}, 1

int fsync(int fd) {
    long long start = now();
    int result = REAL(fsync)(fd);
    note("fsync", fd, start, result, NULL, 0);
    return result;
}

int fdatasync(int fd) {
    long long start = now();
    int result = REAL(fdatasync)(fd);
    note("fdatasync", fd, start, result, NULL, 0);
    return result;
}

ssize_t read(int fd, void *data, size_t size) {
    long long start = now();
    ssize_t result = REAL(read)(fd, data, size);
    if (is_socket(fd)) note("read", fd, start, result, ONE(data, size));
    return result;
}

ssize_t recv(int fd, void *data, size_t size, int flags) {
    long long start = now();
    ssize_t result = REAL(recv)(fd, data, size, flags);
    if (is_socket(fd)) note("recv", fd, start, result, ONE(data, size));
    return result;
}

ssize_t recvmsg(int fd, struct msghdr *message, int flags) {
    long long start = now();
    ssize_t result = REAL(recvmsg)(fd, message, flags);
    note("recvmsg", fd, start, result, message->msg_iov, message->msg_iovlen);
    return result;
}

ssize_t write(int fd, const void *data, size_t size) {
    long long start = now();
    ssize_t result = REAL(write)(fd, data, size);
    if (is_socket(fd)) note("write", fd, start, result, ONE(data, size));
    return result;
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    long long start = now();
    ssize_t result = REAL(writev)(fd, parts, count);
    if (is_socket(fd)) note("writev", fd, start, result, parts, count);
    return result;
}

ssize_t send(int fd, const void *data, size_t size, int flags) {
    long long start = now();
    ssize_t result = REAL(send)(fd, data, size, flags);
    note("send", fd, start, result, ONE(data, size));
    return result;
}

ssize_t sendto(int fd, const void *data, size_t size, int flags, const struct sockaddr *to,
               socklen_t length) {
    long long start = now();
    ssize_t result = REAL(sendto)(fd, data, size, flags, to, length);
    note("sendto", fd, start, result, ONE(data, size));
    return result;
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags) {
    long long start = now();
    ssize_t result = REAL(sendmsg)(fd, message, flags);
    note("sendmsg", fd, start, result, message->msg_iov, message->msg_iovlen);
    return result;
}
