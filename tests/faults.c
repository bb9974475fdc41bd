/* Preloaded into a process: counts the calls that change files below a folder, and at one of them
 * fails, or sends the process a signal. Python, Rust's safetensors, Pillow and onnxruntime all call
 * the C library by these names. Armed by faults.py, in a fork. */

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define HANDLES 1024

enum { BEFORE, HALF, AFTER };

static char root[PATH_MAX], names[HANDLES][PATH_MAX];
static int error_, signal_, moment_, log_ = -1;
static long at_;
static atomic_long seen;
static _Thread_local int due; /* the signal, when this call is done */

void fault_arm(const char *folder, long at, int error, int signal, int moment, int log)
{
    at_ = at, error_ = error, signal_ = signal, moment_ = moment, log_ = log;
    snprintf(root, sizeof root, "%s", folder);
}

static void end(void)
{
    int before = errno;
    kill(getpid(), signal_);
    errno = before;
}

/* Whether this call fails. A disk that is full stays so for what takes room on it. */
static int fails(const char *call, const char *path, int takes_room)
{
    char line[PATH_MAX + 64];
    long mine = atomic_fetch_add(&seen, 1) + 1;
    int before = errno, length = snprintf(line, sizeof line, "%s\t%s\n", call, path);
    if (syscall(SYS_write, log_, line, length) != length)
        _exit(99);
    errno = before;
    if (error_ && (mine == at_ || (error_ == ENOSPC && takes_room && at_ && mine > at_))) {
        errno = error_;
        return 1;
    }
    if (signal_ && mine == at_) {
        if (moment_ == BEFORE)
            end();
        else
            due = 1;
    }
    return 0;
}

static void done(void)
{
    if (due) {
        due = 0;
        end();
    }
}

/* The path that is meant, if it lies below the root. */
static const char *below(int folder, const char *path, char *whole)
{
    size_t length = strlen(root);
    if (!length || !path)
        return NULL;
    if (path[0] == '/')
        snprintf(whole, PATH_MAX, "%s", path);
    else if (folder >= 0 && folder < HANDLES && names[folder][0])
        snprintf(whole, PATH_MAX, "%.2000s/%.2000s", names[folder], path);
    else
        return NULL;
    return strncmp(whole, root, length) || (whole[length] && whole[length] != '/') ? NULL : whole;
}

static const char *behind(int handle)
{
    return handle >= 0 && handle < HANDLES && names[handle][0] ? names[handle] : NULL;
}

static void opened(int handle, const char *path)
{
    if (handle >= 0 && handle < HANDLES)
        snprintf(names[handle], PATH_MAX, "%s", path);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

#define GUARDED(call, path, takes_room, failed, real) \
    const char *place = (path);                       \
    if (place && fails(call, place, takes_room))      \
        return failed;                                \
    __auto_type result = (real);                      \
    if (place)                                        \
        done();                                       \
    return result

#define ON_PATH(folder, path) char whole[PATH_MAX]; const char *where = below(folder, path, whole)

/* ── opening ─────────────────────────────────────────────────────────────────────────────────── */

static int opening(int (*real)(int, const char *, int, ...), int folder, const char *path,
                   int flags, mode_t mode)
{
    ON_PATH(folder, path);
    const char *call = flags & (O_WRONLY | O_RDWR) ? "open" : "look";
    if (where && fails(call, where, flags & O_CREAT))
        return -1;
    int handle = real(folder, path, flags, mode);
    if (where) {
        opened(handle, where);
        done();
    }
    return handle;
}

#define WITH_MODE mode_t mode = 0; va_list rest; va_start(rest, flags); \
    if (flags & (O_CREAT | __O_TMPFILE)) mode = va_arg(rest, mode_t);   \
    va_end(rest)

int open(const char *path, int flags, ...)
{
    WITH_MODE;
    return opening(REAL(openat), AT_FDCWD, path, flags, mode);
}

int openat(int folder, const char *path, int flags, ...)
{
    WITH_MODE;
    return opening(REAL(openat), folder, path, flags, mode);
}

int open64(const char *path, int flags, ...)
{
    WITH_MODE;
    return opening(REAL(openat64), AT_FDCWD, path, flags, mode);
}

int openat64(int folder, const char *path, int flags, ...)
{
    WITH_MODE;
    return opening(REAL(openat64), folder, path, flags, mode);
}

static FILE *stream(FILE *(*real)(const char *, const char *), const char *path, const char *mode)
{
    ON_PATH(AT_FDCWD, path);
    if (where && fails(mode[0] == 'r' ? "look" : "open", where, mode[0] != 'r'))
        return NULL;
    FILE *file = real(path, mode);
    if (where) {
        opened(file ? fileno(file) : -1, where);
        done();
    }
    return file;
}

FILE *fopen(const char *path, const char *mode) { return stream(REAL(fopen), path, mode); }
FILE *fopen64(const char *path, const char *mode) { return stream(REAL(fopen64), path, mode); }

DIR *opendir(const char *path)
{
    ON_PATH(AT_FDCWD, path);
    GUARDED("look", where, 0, NULL, REAL(opendir)(path));
}

/* Closed it is in any case, as Linux does. */
int close(int handle)
{
    const char *place = behind(handle);
    char name[PATH_MAX];
    if (!place)
        return REAL(close)(handle);
    snprintf(name, sizeof name, "%s", place);
    names[handle][0] = 0;
    if (fails("close", name, 0)) {
        REAL(close)(handle);
        errno = error_;
        return -1;
    }
    int result = REAL(close)(handle);
    done();
    return result;
}

int fclose(FILE *file)
{
    int handle = fileno(file);
    if (handle >= 0 && handle < HANDLES)
        names[handle][0] = 0;
    return REAL(fclose)(file);
}

/* ── writing ─────────────────────────────────────────────────────────────────────────────────── */

#define CUT(n) (due && moment_ == HALF ? (n) / 2 : (n))

ssize_t write(int handle, const void *data, size_t n)
{
    GUARDED("write", behind(handle), 1, -1, REAL(write)(handle, data, CUT(n)));
}

ssize_t pwrite(int handle, const void *data, size_t n, off_t offset)
{
    GUARDED("write", behind(handle), 1, -1, REAL(pwrite)(handle, data, CUT(n), offset));
}

ssize_t pwrite64(int handle, const void *data, size_t n, off64_t offset)
{
    GUARDED("write", behind(handle), 1, -1, REAL(pwrite64)(handle, data, CUT(n), offset));
}

ssize_t writev(int handle, const struct iovec *parts, int n)
{
    GUARDED("write", behind(handle), 1, -1, REAL(writev)(handle, parts, n));
}

ssize_t sendfile(int to, int from, off_t *offset, size_t n)
{
    GUARDED("copy", behind(to), 1, -1, REAL(sendfile)(to, from, offset, CUT(n)));
}

ssize_t sendfile64(int to, int from, off64_t *offset, size_t n)
{
    GUARDED("copy", behind(to), 1, -1, REAL(sendfile64)(to, from, offset, CUT(n)));
}

ssize_t copy_file_range(int from, off64_t *start, int to, off64_t *place_, size_t n,
                        unsigned int flags)
{
    GUARDED("copy", behind(to), 1, -1, REAL(copy_file_range)(from, start, to, place_, n, flags));
}

int ftruncate(int handle, off_t size)
{
    GUARDED("truncate", behind(handle), 1, -1, REAL(ftruncate)(handle, size));
}

int ftruncate64(int handle, off64_t size)
{
    GUARDED("truncate", behind(handle), 1, -1, REAL(ftruncate64)(handle, size));
}

int fallocate(int handle, int mode, off_t offset, off_t n)
{
    GUARDED("allocate", behind(handle), 1, -1, REAL(fallocate)(handle, mode, offset, n));
}

int fallocate64(int handle, int mode, off64_t offset, off64_t n)
{
    GUARDED("allocate", behind(handle), 1, -1, REAL(fallocate64)(handle, mode, offset, n));
}

int posix_fallocate(int handle, off_t offset, off_t n)
{
    GUARDED("allocate", behind(handle), 1, error_, REAL(posix_fallocate)(handle, offset, n));
}

int posix_fallocate64(int handle, off64_t offset, off64_t n)
{
    GUARDED("allocate", behind(handle), 1, error_, REAL(posix_fallocate64)(handle, offset, n));
}

int fsync(int handle) { GUARDED("sync", behind(handle), 1, -1, REAL(fsync)(handle)); }
int fdatasync(int handle) { GUARDED("sync", behind(handle), 1, -1, REAL(fdatasync)(handle)); }

void *mmap(void *start, size_t n, int protection, int flags, int handle, off_t offset)
{
    int shared = flags & MAP_SHARED && protection & PROT_WRITE;
    GUARDED("map", shared ? behind(handle) : NULL, 1, MAP_FAILED,
            REAL(mmap)(start, n, protection, flags, handle, offset));
}

void *mmap64(void *start, size_t n, int protection, int flags, int handle, off64_t offset)
{
    int shared = flags & MAP_SHARED && protection & PROT_WRITE;
    GUARDED("map", shared ? behind(handle) : NULL, 1, MAP_FAILED,
            REAL(mmap64)(start, n, protection, flags, handle, offset));
}

/* ── names ───────────────────────────────────────────────────────────────────────────────────── */

int rename(const char *old, const char *new)
{
    ON_PATH(AT_FDCWD, new);
    GUARDED("rename", where, 0, -1, REAL(rename)(old, new));
}

int renameat(int from, const char *old, int to, const char *new)
{
    ON_PATH(to, new);
    GUARDED("rename", where, 0, -1, REAL(renameat)(from, old, to, new));
}

int mkdir(const char *path, mode_t mode)
{
    ON_PATH(AT_FDCWD, path);
    GUARDED("mkdir", where, 1, -1, REAL(mkdir)(path, mode));
}

int mkdirat(int folder, const char *path, mode_t mode)
{
    ON_PATH(folder, path);
    GUARDED("mkdir", where, 1, -1, REAL(mkdirat)(folder, path, mode));
}

int chmod(const char *path, mode_t mode)
{
    ON_PATH(AT_FDCWD, path);
    GUARDED("chmod", where, 0, -1, REAL(chmod)(path, mode));
}

int fchmodat(int folder, const char *path, mode_t mode, int flags)
{
    ON_PATH(folder, path);
    GUARDED("chmod", where, 0, -1, REAL(fchmodat)(folder, path, mode, flags));
}

int unlink(const char *path)
{
    ON_PATH(AT_FDCWD, path);
    GUARDED("remove", where, 0, -1, REAL(unlink)(path));
}

int unlinkat(int folder, const char *path, int flags)
{
    ON_PATH(folder, path);
    GUARDED("remove", where, 0, -1, REAL(unlinkat)(folder, path, flags));
}

int rmdir(const char *path)
{
    ON_PATH(AT_FDCWD, path);
    GUARDED("remove", where, 0, -1, REAL(rmdir)(path));
}
