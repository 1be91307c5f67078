/*
 * A storage manager that leaves the work to md.c and counts how often it is asked for sizes. It takes the
 * permanent relations that this backend creates while smgr_probe.take is on.
 */
#include "postgres.h"

#include "commands/dbcommands.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/md.h"
#include "storage/smgr.h"
#include "utils/guc.h"
#include "utils/rel.h"
#include "access/relation.h"

PG_MODULE_MAGIC;

PG_FUNCTION_INFO_V1(smgr_probe_which);
PG_FUNCTION_INFO_V1(smgr_probe_nblocks_calls);
PG_FUNCTION_INFO_V1(smgr_probe_late);

void		_PG_init(void);

#define MAX_TAKEN 16			/* more stay with md.c */

static RelFileNumber taken[MAX_TAKEN];
static int	ntaken = 0;
static bool take = false;
static int	probe_which = 0;
static int64 nblocks_calls = 0;

static BlockNumber
probe_nblocks(SMgrRelation reln, ForkNumber forknum)
{
	nblocks_calls++;
	return mdnblocks(reln, forknum);
}

static int
probe_select(SMgrRelation reln)
{
	for (int i = 0; i < ntaken; i++)
		if (taken[i] == reln->smgr_rlocator.locator.relNumber)
			return probe_which;
	return 0;
}

static void
probe_create_storage(SMgrRelation reln, char relpersistence)
{
	if (!take || relpersistence != RELPERSISTENCE_PERMANENT || ntaken == MAX_TAKEN)
		return;
	taken[ntaken++] = reln->smgr_rlocator.locator.relNumber;
	reln->smgr_which = probe_which;
}

static int64
probe_dbsize(Oid dboid)
{
	return 1000000 + (int64) dboid;
}

static const f_smgr probe = {
	.smgr_open = mdopen,
	.smgr_close = mdclose,
	.smgr_create = mdcreate,
	.smgr_exists = mdexists,
	.smgr_unlink = mdunlink,
	.smgr_extend = mdextend,
	.smgr_zeroextend = mdzeroextend,
	.smgr_prefetch = mdprefetch,
	.smgr_readv = mdreadv,
	.smgr_writev = mdwritev,
	.smgr_writeback = mdwriteback,
	.smgr_nblocks = probe_nblocks,
	.smgr_truncate = mdtruncate,
	.smgr_immedsync = mdimmedsync,
	.smgr_registersync = mdregistersync,
};

void
_PG_init(void)
{
	DefineCustomBoolVariable("smgr_probe.take", "Take new permanent relations.", NULL, &take, false,
							 PGC_USERSET, 0, NULL, NULL, NULL);
	probe_which = smgr_register(&probe);
	smgr_select_hook = probe_select;
	smgr_create_storage_hook = probe_create_storage;
	dbsize_hook = probe_dbsize;
}

Datum
smgr_probe_which(PG_FUNCTION_ARGS)
{
	Relation	rel = relation_open(PG_GETARG_OID(0), AccessShareLock);
	int			which = RelationGetSmgr(rel)->smgr_which;

	relation_close(rel, AccessShareLock);
	PG_RETURN_INT32(which);
}

Datum
smgr_probe_nblocks_calls(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT64(nblocks_calls);
}

/* Registers after preloading, which is refused. */
Datum
smgr_probe_late(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT32(smgr_register(&probe));
}
