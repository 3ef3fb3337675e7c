/* The thread pool under load: every part of every phase is done exactly once, whoever comes, goes, forks or is late.
 * Built by test_threads.py with rnnfast/kernels/pool.c. Arguments: how many rounds, how many forks. Exit status 0 and
 * "ok", or the first thing that was wrong. Passes on any number of cores. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "pool.h"

enum { MOST = 64, LIMIT = 6 };

#define CHECK(condition) ((condition) ? (void)0 : fail(#condition, __LINE__))

static void fail(const char *what, int line)
{
    fprintf(stderr, "line %d: not %s\n", line, what);
    _exit(1);
}

#ifdef __linux__
/* In place of the C library's: teams larger than the machine, and masks that change. */
static _Thread_local int cpus = 64;

int sched_getaffinity(pid_t pid, size_t size, cpu_set_t *mask)
{
    (void)pid, (void)size;
    CPU_ZERO(mask);
    for (int i = 0; i < cpus; i++)
        CPU_SET(i, mask);
    return 0;
}
#else
static int cpus;
#endif

static atomic_int prepared;

static unsigned prepare(void)
{
    return (unsigned)atomic_fetch_add(&prepared, 1);
}

static double seconds(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return now.tv_sec + 1e-9 * now.tv_nsec;
}

/* ---------------------------------------------------------------------------------------------- what is checked */
typedef struct {
    int done[MOST];             /* not atomic: what a member wrote, the caller must see */
    int parts, depth;
    pthread_t who[MOST];
    int slow;
} job;

static void phase(job *j, int items, int depth);

static void count(void *argument, int part, int parts)
{
    job *j = argument;
    j->done[part]++;
    j->who[part] = pthread_self();
    if (part == 0)
        j->parts = parts;
    for (volatile int i = 0; i < j->slow; i++)
        continue;
    if (j->depth) {
        job inner = {0};
        phase(&inner, 5, j->depth - 1);
    }
}

static void clear(job *j)
{
    memset(j->done, 0, sizeof j->done);
    j->parts = 0;
}

static void check(const job *j, int parts)
{
    for (int i = 0; i < MOST; i++)
        CHECK(j->done[i] == (i < parts));
}

static void split(team *t, job *j, int most)
{
    clear(j);
    rnnfast_team_split(t, count, j);
    CHECK(j->parts >= 1 && j->parts <= most);
    CHECK(pthread_equal(j->who[0], pthread_self()));
    check(j, j->parts);
}

static void each(team *t, job *j, int items)
{
    clear(j);
    rnnfast_team_each(t, items, count, j);
    check(j, items);
}

static void phase(job *j, int items, int depth)
{
    team t;
    j->depth = depth;
    rnnfast_team_open(&t, 3, 0);
    for (int i = 0; i < 4; i++) {
        split(&t, j, 3);
        each(&t, j, items);
    }
    rnnfast_team_close(&t);
}

/* ---------------------------------------------------------------------------------------------- scenarios */
static void many_phases(int rounds)
{
    job j = {0};
    for (int threads = 1; threads <= LIMIT + 2; threads++)
        for (int r = 0; r < rounds; r++) {
            team t;
            rnnfast_team_open(&t, threads, 0);
            pthread_t kept[MOST];
            int parts = 0;
            for (int i = 0; i < r % 40; i++) {
                split(&t, &j, threads < LIMIT ? threads : LIMIT);
                CHECK(j.parts >= parts);
                CHECK(memcmp(kept, j.who, parts * sizeof *kept) == 0);
                parts = j.parts;
                memcpy(kept, j.who, sizeof kept);
                if (i % 3 == 0)
                    each(&t, &j, r % MOST);
            }
            rnnfast_team_close(&t);     /* r = 0, 40 ...: revoked before anyone came */
        }
}

/* Both members of a team must come in the end, and a latecomer takes items of an `each` that has begun. */
static void late(void)
{
    job j = {0};
    team t;
    double end = seconds(CLOCK_MONOTONIC) + 20;
    while (j.parts < 2 && seconds(CLOCK_MONOTONIC) < end) {     /* again, where calls rest from teams */
        rnnfast_team_open(&t, 2, 0);
        for (double some = seconds(CLOCK_MONOTONIC) + 0.1; j.parts < 2 && seconds(CLOCK_MONOTONIC) < some;)
            split(&t, &j, 2);
        rnnfast_team_close(&t);
    }
    CHECK(j.parts == 2);
    for (int others = 0; !others;) {
        CHECK(seconds(CLOCK_MONOTONIC) < end);
        usleep(2000);
        rnnfast_team_open(&t, 2, 0);
        j.slow = 2000000;
        each(&t, &j, 8);
        for (int i = 0; i < 8; i++)
            others += !pthread_equal(j.who[i], pthread_self());
        rnnfast_team_close(&t);
    }
}

/* Brief work has workers only right behind another call; those that it woke may still be there later. */
static void brief(void)
{
    job j = {0};
    team t;
    const double end = seconds(CLOCK_MONOTONIC) + 20;
    for (int i = 0; i < 20; i++) {
        usleep(5000);
        rnnfast_team_open(&t, 2, 1);
        for (double some = seconds(CLOCK_MONOTONIC) + 0.002; seconds(CLOCK_MONOTONIC) < some;)
            split(&t, &j, 1);
        rnnfast_team_close(&t);
    }
    for (j.parts = 0; j.parts < 2;) {
        CHECK(seconds(CLOCK_MONOTONIC) < end);
        rnnfast_team_open(&t, 2, 1);
        split(&t, &j, 2);
        rnnfast_team_close(&t);
    }
}

static void masks(int rounds)
{
    job j = {0};
    for (int r = 0; r < rounds; r++) {
        team t;
        cpus = 1 + r % 4;
        rnnfast_team_open(&t, LIMIT, 0);
        for (int i = 0; i < 20; i++) {
            split(&t, &j, LIMIT);
#ifdef __linux__
            CHECK(j.parts <= cpus);
#endif
        }
        rnnfast_team_close(&t);
    }
    cpus = 64;
}

static void nested(int rounds)
{
    for (int r = 0; r < rounds / 20 + 1; r++) {
        job j = {0};
        phase(&j, 7, 2);
    }
}

static void *opener(void *argument)
{
    const int rounds = *(int *)argument;
    job j = {0};
    for (int r = 0; r < rounds; r++) {
        cpus = 2 + r % 5;
        phase(&j, r % 9, r % 7 == 0);
    }
    return NULL;
}

static void in_child(int rounds)
{
    job j = {0};
    team t;
    CHECK(rnnfast_pool_limit() == 0);
    rnnfast_team_open(&t, 4, 0);
    split(&t, &j, 1);
    rnnfast_team_close(&t);
    atomic_store(&prepared, 0);
    rnnfast_pool_start(LIMIT, prepare);
    many_phases(rounds / 20 + 1);
    CHECK(atomic_load(&prepared) <= LIMIT - 1);
    late();
    brief();
    _exit(0);
}

static void fork_once(int rounds)
{
    int status;
    const pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        alarm(60);
        if (rounds % 2 && fork() == 0)  /* and a grandchild, from a child that has not used it */
            in_child(rounds);
        in_child(rounds);
    }
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void openers(int rounds, int forks)
{
    pthread_t threads[8];
    for (int i = 0; i < 8; i++)
        CHECK(pthread_create(&threads[i], NULL, opener, &rounds) == 0);
    for (int i = 0; i < forks; i++)
        fork_once(40 + i);
    for (int i = 0; i < 8; i++)
        pthread_join(threads[i], NULL);
}

static void idle(void)
{
    usleep(20000);
    const double before = seconds(CLOCK_PROCESS_CPUTIME_ID);
    usleep(300000);
    CHECK(seconds(CLOCK_PROCESS_CPUTIME_ID) - before < 0.01);
}

int main(int argc, char **argv)
{
    const int rounds = argc > 1 ? atoi(argv[1]) : 400, forks = argc > 2 ? atoi(argv[2]) : 5;
    rnnfast_pool_start(LIMIT, prepare);
    late();
    brief();
    many_phases(rounds);
    idle();
    masks(rounds / 4);
    nested(rounds);
    openers(rounds, 0);
    openers(rounds, forks);
    if (forks)
        fork_once(rounds);
    idle();
    many_phases(rounds / 10);
    CHECK(atomic_load(&prepared) <= LIMIT - 1);
    printf("ok, %d workers\n", atomic_load(&prepared));
    return 0;
}
