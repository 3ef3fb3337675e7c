"""Work memory for calls: blocks that calls borrow and give back, of which a bounded number of bytes is kept."""
from libc.stdlib cimport free
from posix.stdlib cimport posix_memalign

from rnnfast.errors import LimitError

cdef extern from *:
    """
    #include <sched.h>
    #include <sys/mman.h>
    #ifndef MAP_ANONYMOUS
    #define MAP_ANONYMOUS MAP_ANON
    #endif
    #ifdef __SANITIZE_ADDRESS__
    enum { MAPS = 0 };              /* so that the sanitizer knows the ends of blocks */
    #else
    enum { MAPS = 1 };
    #endif

    /* A lock that is held for a few dozen instructions, none of which calls anything. */
    static void take_lock(int *lock)
    {
        while (__atomic_exchange_n(lock, 1, __ATOMIC_ACQUIRE))
            sched_yield();
    }
    static void drop_lock(int *lock) { __atomic_store_n(lock, 0, __ATOMIC_RELEASE); }

    static void *map_memory(size_t n)
    {
        void *p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        return p == MAP_FAILED ? NULL : p;
    }
    static void unmap_memory(void *p, size_t n) { munmap(p, n); }
    static int bits_of(unsigned long long n) { return n ? 64 - __builtin_clzll(n) : 0; }
    """
    int MAPS
    void take_lock(int *) noexcept nogil
    void drop_lock(int *) noexcept nogil
    void *map_memory(size_t) noexcept nogil
    void unmap_memory(void *, size_t) noexcept nogil
    int bits_of(unsigned long long) noexcept nogil

cdef enum:
    HEAD = 64                   # bytes of a block before the memory that it offers
    SLACK = 64                  # bytes that a kernel may read past the end of what was asked for
    PAGE = 4096
    MAPPED = 1 << 20            # least bytes of a block that is mapped, so that freeing it returns it to the system
    MOST_BITS = 46              # more bytes do not fit the address space


cdef inline int class_of(size_t pages) noexcept nogil:
    """Return the class of blocks of so many pages: eight classes for each power of two, so an eighth is wasted at most.
    """
    cdef int shift = max(0, bits_of(pages - 1) - 4)
    return 8 * shift + <int>((pages - 1) >> shift) + 1


cdef inline size_t pages_of(size_t pages) noexcept nogil:
    """Return the pages of the blocks of a class, the one of which so many pages are."""
    cdef int shift = max(0, bits_of(pages - 1) - 4)
    return (((pages - 1) >> shift) + 1) << shift


cdef block *allocated(size_t nbytes) noexcept nogil:
    """Return a new block of so many bytes, or NULL."""
    cdef void *p = NULL
    if MAPS and nbytes >= MAPPED:
        p = map_memory(nbytes)
    elif posix_memalign(&p, 64, nbytes) != 0:
        p = NULL
    if p != NULL:
        (<block *>p).nbytes = nbytes
    return <block *>p


cdef void deallocate(block *b) noexcept nogil:
    """Free a block and those that are linked to it by `older`."""
    cdef block *next
    while b != NULL:
        next = b.older
        if MAPS and b.nbytes >= MAPPED:
            unmap_memory(b, b.nbytes)
        else:
            free(b)
        b = next


cdef class Arenas:
    """The work memory of a model: at most `most` bytes of it are held, or what the calls in progress need.

    A call borrows a block that is large enough and gives it back. Blocks that are not in use are kept for later calls;
    those that were used least recently are freed. All threads may call it at the same time.
    """
    def __cinit__(self, most):
        self.most, self.in_use, self.kept, self.stamp, self.lock = most, 0, 0, 0, 0
        for i in range(CLASSES):
            self.newest[i] = self.oldest[i] = NULL

    def __dealloc__(self):
        deallocate(self.surplus(-1))

    @property
    def held(self):
        """The bytes of all blocks, in use or kept for later calls."""
        take_lock(&self.lock)
        cdef Py_ssize_t nbytes = self.in_use + self.kept
        drop_lock(&self.lock)
        return nbytes

    @property
    def spare(self):
        """The bytes of the blocks that are kept for later calls."""
        take_lock(&self.lock)
        cdef Py_ssize_t nbytes = self.kept
        drop_lock(&self.lock)
        return nbytes

    def trim(self):
        """Free all blocks that are not in use."""
        take_lock(&self.lock)
        cdef block *freed = self.surplus(-1)
        drop_lock(&self.lock)
        deallocate(freed)

    cdef block *borrow(self, Py_ssize_t nbytes) except NULL:
        """Return a block that offers so many bytes, uninitialised; give_back takes it again."""
        cdef size_t pages
        cdef int i
        cdef block *b
        if nbytes >> MOST_BITS:
            raise LimitError(f"a buffer of {nbytes} bytes does not fit the address space")
        pages = (<size_t>nbytes + HEAD + SLACK + PAGE - 1) // PAGE
        take_lock(&self.lock)
        for i in range(class_of(pages), CLASSES):
            b = self.newest[i]
            if b != NULL:
                self.newest[i] = b.older
                if b.older != NULL:
                    b.older.newer = NULL
                else:
                    self.oldest[i] = NULL
                self.kept -= b.nbytes
                self.in_use += b.nbytes
                drop_lock(&self.lock)
                return b
        pages = pages_of(pages)
        self.in_use += pages * PAGE
        cdef block *freed = self.surplus(self.most)
        drop_lock(&self.lock)
        deallocate(freed)
        b = allocated(pages * PAGE)
        if b == NULL:
            take_lock(&self.lock)
            self.in_use -= pages * PAGE
            drop_lock(&self.lock)
            raise LimitError(f"no memory for a buffer of {pages * PAGE} bytes")
        return b

    cdef void give_back(self, block *b) noexcept:
        """Take a block back; it is kept or freed."""
        cdef int i = class_of(b.nbytes // PAGE)
        take_lock(&self.lock)
        self.in_use -= b.nbytes
        self.kept += b.nbytes
        self.stamp += 1
        b.stamp, b.newer, b.older = self.stamp, NULL, self.newest[i]
        if b.older != NULL:
            b.older.newer = b
        else:
            self.oldest[i] = b
        self.newest[i] = b
        cdef block *freed = self.surplus(self.most) if self.in_use + self.kept > self.most else NULL
        drop_lock(&self.lock)
        if freed != NULL:
            deallocate(freed)

    cdef block *surplus(self, Py_ssize_t most) noexcept:
        """Take out the blocks least recently used until no more than `most` bytes are held; return their chain.

        The caller holds the lock.
        """
        cdef block *chain = NULL
        cdef block *b
        cdef int i, of
        while self.kept and self.in_use + self.kept > most:
            of = -1
            for i in range(CLASSES):
                if self.oldest[i] != NULL and (of < 0 or self.oldest[i].stamp < self.oldest[of].stamp):
                    of = i
            b = self.oldest[of]
            self.oldest[of] = b.newer
            if b.newer != NULL:
                b.newer.older = NULL
            else:
                self.newest[of] = NULL
            self.kept -= b.nbytes
            b.older = chain
            chain = b
        return chain
