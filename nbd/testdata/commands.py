"""Every command and flag through libnbd, structured and simple. Usage: commands.py URI"""
import sys
import nbd

uri = sys.argv[1]


def connect(structured=True, flags=None, strict=None):
    h = nbd.NBD()
    h.set_request_structured_replies(structured)
    if structured:
        h.add_meta_context("base:allocation")
    if flags is not None:
        h.set_handshake_flags(flags)
    if strict is not None:
        h.set_strict_mode(strict)
    h.connect_uri(uri)
    return h


def refused(want, call, *args):
    try:
        call(*args)
    except nbd.Error as e:
        assert e.errno == want, (call, args, e.errno, want)
        return
    raise AssertionError((call, args, "was not refused"))


def commands(h, structured):
    size = h.get_size()
    assert h.get_structured_replies_negotiated() == structured
    assert h.can_flush() and h.can_fua() and h.can_trim() and h.can_zero() and h.can_fast_zero() and h.can_cache() and h.can_multi_conn()
    assert h.can_df() == structured and not h.is_read_only() and not h.is_rotational()
    data = bytes(range(1, 251)) * 400
    for flags in (0, nbd.CMD_FLAG_FUA):
        h.pwrite(data, 777, flags)
        assert h.pread(len(data), 777) == data
    h.zero(5000, 1000)
    assert h.pread(5000, 1000) == bytes(5000)
    assert h.pread(10, 990) == data[213:223] and h.pread(10, 6000) == data[5223:5233]
    for flags in (nbd.CMD_FLAG_NO_HOLE, nbd.CMD_FLAG_FUA, nbd.CMD_FLAG_FUA | nbd.CMD_FLAG_NO_HOLE):
        h.pwrite(data, 0)
        h.zero(8192, 0, flags)
        assert h.pread(8192, 0) == bytes(8192)
    h.pwrite(data, 0)
    try:
        h.zero(8192, 0, nbd.CMD_FLAG_FAST_ZERO)
        assert h.pread(8192, 0) == bytes(8192)
    except nbd.Error as e:
        assert e.errno == "ENOTSUP" and h.pread(8192, 0) == data[:8192]
    h.pwrite(data, 65536)
    for flags in (0, nbd.CMD_FLAG_FUA):
        h.trim(65536, 65536, flags)
    assert h.pread(65536, 65536) == bytes(65536)
    h.cache(65536, 0)
    h.flush()
    h.pwrite(b"z" * 512, size - 512)
    assert h.pread(512, size - 512) == b"z" * 512
    h.zero(size, 0)  # the whole device in one request
    assert h.pread(512, size - 512) == bytes(512)
    if structured:
        h.pwrite(b"a" * 4096, 1 << 20)
        whole = []
        got = h.pread_structured(2 << 20, 0, lambda b, o, s, e: whole.append((o, len(b), s)) and 0 or 0, nbd.CMD_FLAG_DF)
        assert whole == [(0, 2 << 20, nbd.READ_DATA)] and got[1 << 20:(1 << 20) + 4096] == b"a" * 4096, whole
        chunks = []
        h.pread_structured(2 << 20, 0, lambda b, o, s, e: chunks.append((o, len(b), s)) and 0 or 0)
        assert [c[2] for c in sorted(chunks)] == [nbd.READ_HOLE, nbd.READ_DATA, nbd.READ_HOLE], chunks
        extents = []
        h.block_status(2 << 20, 0, lambda m, o, e, err: extents.append((m, list(e))) and 0 or 0)
        flags = extents[0][1][1::2]
        assert extents[0][0] == "base:allocation" and flags == [3, 0, 3], extents
        one = []
        h.block_status(2 << 20, 0, lambda m, o, e, err: one.append(list(e)) and 0 or 0, nbd.CMD_FLAG_REQ_ONE)
        assert one == [[1 << 20, 3]], one


def refusals(h):
    size = h.get_size()
    refused("EINVAL", h.pread, 512, size)
    refused("EINVAL", h.pread, 1024, size - 512)
    refused("ENOSPC", h.pwrite, b"x" * 1024, size - 512)
    refused("ENOSPC", h.zero, 1024, size - 512)
    refused("EINVAL", h.trim, 1024, size - 512)
    refused("EINVAL", h.cache, 1024, size - 512)
    refused("EINVAL", h.pread, 512, 0, 0x80)
    assert h.pread(512, 0) is not None


commands(connect(True), True)
commands(connect(False), False)
refusals(connect(True, strict=0))
refusals(connect(False, strict=0))
commands(connect(False, flags=0), False)  # EXPORT_NAME, zeroes and all
commands(connect(True, flags=nbd.HANDSHAKE_FLAG_FIXED_NEWSTYLE), True)

o = nbd.NBD()
o.set_opt_mode(True)
o.connect_uri(uri)
names = []
o.opt_list(lambda n, d: names.append(n) and 0 or 0)
assert names == ["disk"], names
o.set_export_name("nope")
refused("ENOENT", o.opt_go)
o.set_export_name("disk")
o.opt_info()
size = o.get_size()
o.opt_go()
assert o.get_size() == size and o.get_block_size(nbd.SIZE_MINIMUM) == 1 and o.get_block_size(nbd.SIZE_PREFERRED) == 4096 and o.get_block_size(nbd.SIZE_MAXIMUM) == 32 << 20
o.shutdown()
nbd_abort = nbd.NBD()
nbd_abort.set_opt_mode(True)
nbd_abort.connect_uri(uri)
nbd_abort.opt_abort()
print("all commands are as they should be")
