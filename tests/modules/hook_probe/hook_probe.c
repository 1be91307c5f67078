/*
 * Counts WAL records with main data and how many of them have a page, makes interrupts start again, and takes
 * over from postgres --wal-redo.
 */
#include "postgres.h"

#include <unistd.h>

#include "access/rmgr.h"
#include "access/xlog_internal.h"
#include "access/xloginsert.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "utils/builtins.h"

PG_MODULE_MAGIC;

PG_FUNCTION_INFO_V1(hook_probe_records);
PG_FUNCTION_INFO_V1(hook_probe_interrupts);

void		_PG_init(void);

static int64 records = 0;
static int64 pages = 0;
static int64 main_bytes = 0;
static int	restarts_wanted = 0;
static int	hook_calls = 0;
static bool cancel_in_hook = false;

static RmgrId
probe_xlog_insert(RmgrId rmid, uint8 info)
{
	if (rmid == RM_HEAP_ID)
	{
		records++;
		main_bytes += XLogGetMainData()->len;
		if (XLogGetRegisteredPage(0) != NULL && XLogGetRegisteredPage(200) == NULL)
			pages++;
	}
	return rmid;
}

static bool
probe_interrupts(void)
{
	hook_calls++;
	if (restarts_wanted == 0)
		return false;
	restarts_wanted--;
	if (cancel_in_hook)
	{
		cancel_in_hook = false;
		QueryCancelPending = true;
	}
	return true;
}

static void
probe_take_over(void)
{
	printf("took over, wal redo %d, database opened %d\n", am_wal_redo, MyDatabaseId != InvalidOid);
	fflush(stdout);
	_exit(0);
}

void
_PG_init(void)
{
	xlog_insert_hook = probe_xlog_insert;
	process_interrupts_hook = probe_interrupts;
	if (am_wal_redo)
		shmem_startup_hook = probe_take_over;
}

/* Records, pages and bytes of main data of heap records since the last call. */
Datum
hook_probe_records(PG_FUNCTION_ARGS)
{
	char	   *text = psprintf(INT64_FORMAT " " INT64_FORMAT " " INT64_FORMAT, records, pages, main_bytes);

	records = pages = main_bytes = 0;
	PG_RETURN_TEXT_P(cstring_to_text(text));
}

/*
 * Raises an interrupt, lets the hook start it again so many times, and returns how often it was called. With
 * cancel, a cancel arrives while the hook runs.
 */
Datum
hook_probe_interrupts(PG_FUNCTION_ARGS)
{
	restarts_wanted = PG_GETARG_INT32(0);
	cancel_in_hook = PG_GETARG_BOOL(1);
	hook_calls = 0;
	InterruptPending = true;
	CHECK_FOR_INTERRUPTS();
	PG_RETURN_INT32(hook_calls);
}
