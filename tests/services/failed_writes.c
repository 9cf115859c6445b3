/*
 * A write that failed is not forgotten: what would make it count fails too.
 *
 * ClickHouse throws when a write fails, and the insert or the merge ends with that error. The library that the tests run it
 * from leaves the rest of the file out instead and goes on (WriteBufferFromFileDescriptor::nextImpl), so that on a full disk
 * an insert is confirmed whose part is empty. It still throws where fdatasync and rename fail. So here fdatasync of such a
 * file fails, and rename of the directory that it is in, by which a part becomes one of its table's.
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MOST_FILES = 1 << 20, MOST_DIRECTORIES = 64 };

/* Why a write to this file descriptor has failed since it was opened, or 0. */
static _Atomic int failed[MOST_FILES];

/* Where the last of them were, each for as long as there is nothing new in its place. */
static struct {
    char path[PATH_MAX];
    int error;
} directories[MOST_DIRECTORIES];
static unsigned next_directory;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static ssize_t (*real_write)(int, const void *, size_t);
static int (*real_fdatasync)(int);
static int (*real_close)(int);
static int (*real_rename)(const char *, const char *);
static int (*real_mkdir)(const char *, mode_t);

__attribute__((constructor)) static void look_up(void) {
    real_write = (ssize_t (*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");
    real_fdatasync = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    real_close = (int (*)(int))dlsym(RTLD_NEXT, "close");
    real_rename = (int (*)(const char *, const char *))dlsym(RTLD_NEXT, "rename");
    real_mkdir = (int (*)(const char *, mode_t))dlsym(RTLD_NEXT, "mkdir");
}

static int is_known(int fd) { return fd >= 0 && fd < MOST_FILES; }

static int is_of_disk(int error) { return error == ENOSPC || error == EDQUOT || error == EFBIG || error == EIO; }

/* The error of a write into this directory, which is then forgotten, or 0. */
static int take_directory(const char *path) {
    size_t length = strlen(path);
    while (length > 1 && path[length - 1] == '/')
        length--;
    int error = 0;
    pthread_mutex_lock(&lock);
    for (int at = 0; at < MOST_DIRECTORIES; at++) {
        if (strlen(directories[at].path) == length && strncmp(directories[at].path, path, length) == 0) {
            error = directories[at].error;
            directories[at].path[0] = 0;
        }
    }
    pthread_mutex_unlock(&lock);
    return error;
}

static void note_directory(int fd, int error) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0)
        return;
    path[length] = 0;
    char *name = strrchr(path, '/');
    if (name == NULL)
        return;
    *name = 0;
    take_directory(path);
    pthread_mutex_lock(&lock);
    unsigned at = next_directory++ % MOST_DIRECTORIES;
    strcpy(directories[at].path, path);
    directories[at].error = error;
    pthread_mutex_unlock(&lock);
}

ssize_t write(int fd, const void *data, size_t size) {
    ssize_t written = real_write(fd, data, size);
    int error = errno;
    if (written < 0 && is_known(fd) && is_of_disk(error)) {
        failed[fd] = error;
        note_directory(fd, error);
        errno = error;
    }
    return written;
}

int fdatasync(int fd) {
    int result = real_fdatasync(fd);
    if (result == 0 && is_known(fd) && failed[fd] != 0) {
        errno = failed[fd];
        return -1;
    }
    return result;
}

int close(int fd) {
    if (is_known(fd))
        failed[fd] = 0;
    return real_close(fd);
}

int rename(const char *from, const char *to) {
    int error = take_directory(from);
    if (error != 0) {
        errno = error;
        return -1;
    }
    return real_rename(from, to);
}

int mkdir(const char *path, mode_t mode) {
    int result = real_mkdir(path, mode);
    if (result == 0)
        take_directory(path);
    return result;
}
