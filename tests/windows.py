"""Python as on Windows, as far as Linux can imitate it.

`python tests/windows.py ARGUMENTS` runs `npgpt2 ARGUMENTS` there, and `-c CODE` runs code. Python's
own modules that work differently on Windows keep what they need in a private copy; all other code,
including libraries, sees what Windows has. Spawned processes load this file as well.

It is still Linux: `sys.platform` says so, which libraries query. Paths have slashes, names are case
sensitive, and files opened by other processes are not locked.
"""

import builtins
import importlib
import io
import os
import pathlib
import re
import shutil
import signal
import stat
import sys
import types

# https://docs.python.org/3/library/: "Availability: Unix", or not Windows.
MODULES = [
    "crypt", "fcntl", "grp", "nis", "posix", "pty", "pwd", "readline", "resource", "spwd",
    "syslog", "termios", "tty", "multiprocessing.popen_fork",
    "multiprocessing.popen_forkserver",
]  # fmt: skip
OF_OS = re.compile(
    "(CLD|CLONE|EFD|EX|F|GRND|MFD|NGROUPS|P|PIDFD|POSIX|PRIO|RTLD|RWF|SCHED|SF|SPLICE|ST|TFD|W"
    "|XATTR)_?[A-Z_0-9]*"
    "|O_(?!APPEND|CREAT|EXCL|RDONLY|RDWR|TRUNC|WRONLY)[A-Z]+"
    "|SEEK_(DATA|HOLE)|WCOREDUMP|WIF.*|(sched|posix|timerfd)_.*|(get|list|remove|set)xattr"
    "|[sg]et(e|re|res)?[ug]id|[sg]etgroups|getgrouplist|initgroups|[sg]et(pgid|pgrp|sid|priority)"
    "|l?chown|lchmod|l?chflags|chroot|confstr.*|ctermid|environb|getenvb|eventfd.*|fch(dir|mod|own)"
    "|fdatasync|fork(pty)?|f?pathconf.*|f?statvfs|fwalk|getloadavg|getrandom|grantpt|killpg|lockf"
    "|login_tty|major|minor|makedev|memfd_create|mkfifo|mknod|nice|openpty|pidfd_open|pipe2|plock"
    "|p?readv?|p?writev?|ptsname|register_at_fork|sendfile|setns|splice|copy_file_range|sync"
    "|sysconf.*|tc[gs]etpgrp|ttyname|uname|unlockpt|unshare|wait(3|4|id)?"
)  # fmt: skip
KEPT = {"read", "write", "F_OK", "R_OK", "W_OK", "X_OK", "P_WAIT", "P_NOWAIT", "P_NOWAITO"}
SIGNALS = {"SIGABRT", "SIGBREAK", "SIGFPE", "SIGILL", "SIGINT", "SIGSEGV", "SIGTERM"}
OF_SIGNAL = [
    "SIG_BLOCK", "SIG_UNBLOCK", "SIG_SETMASK", "Sigmasks", "ITIMER_PROF", "ITIMER_REAL",
    "ITIMER_VIRTUAL", "ItimerError", "alarm", "getitimer", "pause", "pidfd_send_signal",
    "pthread_kill", "pthread_sigmask", "setitimer", "siginterrupt", "sigpending",
    "sigtimedwait", "sigwait", "sigwaitinfo", "struct_siginfo",
]  # fmt: skip
# They do the same there by other means.
PYTHONS_OWN = [
    "asyncio.base_events", "asyncio.events", "asyncio.unix_events",
    "concurrent.futures.process", "ctypes", "multiprocessing.connection",
    "multiprocessing.context", "multiprocessing.popen_spawn_posix",
    "multiprocessing.popen_fork", "multiprocessing.process", "multiprocessing.queues",
    "multiprocessing.resource_tracker", "multiprocessing.spawn", "multiprocessing.synchronize",
    "multiprocessing.util", "platform", "random", "selectors", "socket", "subprocess",
    "tempfile", "threading", "concurrent.futures.thread", "logging", "webbrowser", "uuid",
]  # fmt: skip
FORBIDDEN = re.compile(
    r'.*[<>:"|?*\x00-\x1f].*|.*[. ]|(con|prn|aux|nul|(com|lpt)[1-9¹²³])(\..*)?', re.IGNORECASE
)

if hasattr(os, "process_cpu_count"):  # of 3.13: in Python, by what is removed below
    os.process_cpu_count = os.cpu_count
_real = types.ModuleType("os")
_real.__dict__.update(os.__dict__)


def hide() -> None:
    """Make this process imitate Windows."""
    signals = types.ModuleType("signal")
    signals.__dict__.update(signal.__dict__)
    for name in PYTHONS_OWN:
        module = importlib.import_module(name)
        for copy in (_real, signals):
            if hasattr(module, copy.__name__):
                setattr(module, copy.__name__, copy)
    importlib.import_module("numpy")  # the wheel for Linux asks Linux for its version
    loops = importlib.import_module("asyncio.unix_events")
    for name in ("add_signal_handler", "remove_signal_handler"):
        delattr(loops._UnixSelectorEventLoop, name)
    shutil._use_fd_functions = shutil._USE_CP_SENDFILE = False
    asks = shutil.disk_usage
    shutil.disk_usage = types.FunctionType(asks.__code__, vars(shutil) | {"os": _real})
    for name in MODULES:
        sys.modules[name] = None
    for name in list(vars(os)):
        if OF_OS.fullmatch(name) and name not in KEPT:
            delattr(os, name)
    for name in list(vars(signal)):
        if (name.startswith("SIG") and name[3] != "_" and name not in SIGNALS) or name in OF_SIGNAL:
            delattr(signal, name)
    signal.SIGBREAK = signals.SIGTTIN  # 21 here and there
    for name, call in OTHERWISE.items():
        setattr(os, name, call)
    builtins.open = io.open = _open_file
    if sys.version_info < (3, 11):  # there it keeps them
        for name, call in {**OTHERWISE, "open": _open_file}.items():
            setattr(pathlib._NormalAccessor, name, staticmethod(call))
    sys.stdout.reconfigure(encoding="cp1252", newline="\r\n")


def _refuse(error, *paths):
    raise OSError(error, os.strerror(error), *map(str, paths[:1]))


def _name(path):
    """Check a path to create: Windows does not allow such names."""
    path = os.fsdecode(path)
    if any(FORBIDDEN.fullmatch(part) for part in path.split("/") if part not in ("", ".", "..")):
        raise OSError(22, "The filename, directory name, or volume label syntax is incorrect", path)


def _closed(path):
    """A file that this process has open or mapped, or a folder with one, cannot be moved."""
    path = os.path.realpath(os.path.dirname(path) or ".") + "/" + os.path.basename(path)
    with _real.fdopen(_real.open("/proc/self/maps", os.O_RDONLY)) as maps:
        there = [line.split(maxsplit=5)[5].rstrip() for line in maps if "/" in line]
    for number in _real.listdir("/proc/self/fd"):
        try:
            there.append(_real.readlink(f"/proc/self/fd/{number}"))
        except OSError:
            continue
    if any(file == path or file.startswith(path + "/") for file in there):
        raise PermissionError(13, "The process cannot access the file: it is being used", path)


def _open(path, flags, *args, **kwargs):
    if os.path.isdir(path):
        _refuse(13, path)
    if flags & os.O_CREAT:
        _name(path)
    return _real.open(path, flags, *args, **kwargs)


def _mkdir(path, *args, **kwargs):
    _name(path)
    _real.mkdir(path, *args, **kwargs)


def _rename(source, target, **kwargs):
    if os.path.lexists(target):
        raise FileExistsError(17, "Cannot create a file when that file already exists", str(source))
    _replace(source, target)


def _replace(source, target, **kwargs):
    _name(target)
    for path in (source, target):
        if os.path.lexists(path):
            _closed(path)
    if os.path.isdir(target):
        _refuse(13, source)
    _real.replace(source, target)


def _link(source, target, **kwargs):
    _name(target)
    _real.link(source, target)


def _symlink(source, target, *args, **kwargs):
    raise OSError(22, "A required privilege is not held by the client", str(target))


def _unlink(path, **kwargs):
    _closed(path)
    if not stat.S_IWRITE & os.lstat(path).st_mode:
        _refuse(13, path)
    _real.unlink(path)


def _rmdir(path, **kwargs):
    _closed(path)
    _real.rmdir(path)


def _open_file(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, *args, **kw):
    """Text is cp1252 by default, and lines end in CR LF."""
    if isinstance(file, (str, bytes, os.PathLike)):
        if os.path.isdir(file):
            _refuse(13, file)
        if set(mode) & set("wax+"):
            _name(file)
    if "b" not in mode:
        encoding = encoding if encoding not in (None, "locale") else "cp1252"
        if newline is None and set(mode) & set("wax"):
            newline = "\r\n"
    return _python_open(file, mode, buffering, encoding, errors, newline, *args, **kw)


_python_open = io.open
OTHERWISE = {
    "open": _open, "mkdir": _mkdir, "rename": _rename, "replace": _replace, "link": _link,
    "symlink": _symlink, "remove": _unlink, "unlink": _unlink, "rmdir": _rmdir,
}  # fmt: skip
hide()

if __name__ == "__main__":
    if sys.argv[1] == "-c":
        code = compile(sys.argv[2], "<code>", "exec")
        del sys.argv[1:3]
        exec(code, {"__name__": "__main__"})
    else:
        from npgpt2.__main__ import main

        sys.exit(main())
