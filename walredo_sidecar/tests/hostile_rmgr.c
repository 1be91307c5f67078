/*
 * A resource manager whose redo does what an attacker would do who has found a
 * hole in a real one: system calls of the record's choice.  The test of the
 * jail loads it beside the library under test; nothing else ever does.
 *
 * Main data of a record: one byte that says what to try.
 */
#include "postgres.h"

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

#include "access/xlog_internal.h"
#include "access/xlogreader.h"
#include "fmgr.h"

PG_MODULE_MAGIC;

#define HOSTILE_RMGR_ID 200

static void
hostile_redo(XLogReaderState *record)
{
	char		what = XLogRecGetData(record)[0];
	const char *achieved = "something";

	switch (what)
	{
		case 'r':
			if (open("/etc/passwd", O_RDONLY) >= 0)
				achieved = "opened a file";
			break;
		case 'w':
			if (open("/tmp/hostile", O_WRONLY | O_CREAT, 0600) >= 0)
				achieved = "created a file";
			break;
		case 's':
			if (socket(AF_INET, SOCK_STREAM, 0) >= 0)
				achieved = "made a socket";
			break;
		case 'f':
			if (syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0) >= 0)
				achieved = "started a process";
			break;
		case 'e':
			execl("/bin/sh", "sh", "-c", "id", (char *) NULL);
			break;
		case 'k':
			if (kill(getppid(), 0) == 0)
				achieved = "signalled the page server";
			break;
		case 'p':
			if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) == 0)
				achieved = "traced";
			break;
		case 'm':
			if (mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC,
					 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED)
				achieved = "mapped executable memory";
			break;
		case 'u':
			if (setuid(0) == 0)
				achieved = "became root";
			break;
		case 'd':
			if (write(0, "x", 1) == 1 || dup2(1, 7) == 7)
				achieved = "made a descriptor";
			break;
		case 'a':
			{
				/* memory without end: must be stopped by the limit */
				volatile char *p;

				while ((p = malloc(1 << 20)) != NULL)
					memset((void *) p, 1, 1 << 20);
				achieved = "stopped at the memory limit";
				break;
			}
		case 'l':
			/* work without end */
			for (volatile int i = 0;; i++)
				;
		case 'c':
			/* a crash */
			*(volatile int *) 8 = 1;
			break;
		default:
			elog(ERROR, "unknown trick");
	}
	elog(ERROR, "the hostile record %s", achieved);
}

static const RmgrData hostile_rmgr = {
	.rm_name = "hostile",
	.rm_redo = hostile_redo,
};

void
_PG_init(void)
{
	RegisterCustomRmgr(HOSTILE_RMGR_ID, &hostile_rmgr);
}
