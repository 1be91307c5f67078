/*
 * A library that knows much about the server's insides: it is compiled against the headers of stock PostgreSQL
 * and loaded into the patched server. abi_layout() tells sizes and offsets as the compiler saw them, so that
 * compiling it twice shows a difference in any of them.
 */
#include "postgres.h"

#include "access/nbtree.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xlog_internal.h"
#include "access/xloginsert.h"
#include "access/xlogreader.h"
#include "access/xlogrecovery.h"
#include "catalog/pg_control.h"
#include "commands/dbcommands.h"
#include "executor/instrument.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/buf_internals.h"
#include "storage/bufmgr.h"
#include "storage/proc.h"
#include "storage/smgr.h"
#include "utils/builtins.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/timeout.h"

PG_MODULE_MAGIC;

/*
 * What the extension repeats of headers that its bindings leave out. The numbers stand in the Rust files as well, where the
 * compiler holds them against the declarations there.
 */
/* neon_ext/src/ffi/index_scan.rs */
StaticAssertDecl(offsetof(BTScanOpaqueData, currPos) == 88, "BTScanOpaqueData.currPos");
StaticAssertDecl(offsetof(BTScanPosData, currPage) == 16, "BTScanPosData.currPage");
StaticAssertDecl(offsetof(BTScanPosData, dir) == 28, "BTScanPosData.dir");
StaticAssertDecl(offsetof(BTScanPosData, firstItem) == 36, "BTScanPosData.firstItem");
StaticAssertDecl(offsetof(BTScanPosData, lastItem) == 40, "BTScanPosData.lastItem");
StaticAssertDecl(offsetof(BTScanPosData, itemIndex) == 44, "BTScanPosData.itemIndex");
StaticAssertDecl(offsetof(BTScanPosData, items) == 48, "BTScanPosData.items");
StaticAssertDecl(sizeof(BTScanPosItem) == 10, "BTScanPosItem");
StaticAssertDecl(offsetof(BTScanPosItem, heapTid) == 0, "BTScanPosItem.heapTid");
StaticAssertDecl(MaxTIDsPerBTreePage == 1358, "MaxTIDsPerBTreePage");
/* neon_ext/src/ffi/timer.rs */
StaticAssertDecl(USER_TIMEOUT == 13, "USER_TIMEOUT");

PG_FUNCTION_INFO_V1(abi_layout);
PG_FUNCTION_INFO_V1(abi_walk);

#define SIZE(type) appendStringInfo(&out, #type " %zu\n", sizeof(type))
#define OFFSET(type, field) appendStringInfo(&out, #type "." #field " %zu\n", offsetof(type, field))

Datum
abi_layout(PG_FUNCTION_ARGS)
{
	StringInfoData out;

	initStringInfo(&out);
	SIZE(SMgrRelationData);
	OFFSET(SMgrRelationData, smgr_cached_nblocks);
	OFFSET(SMgrRelationData, smgr_which);
	OFFSET(SMgrRelationData, md_seg_fds);
	OFFSET(SMgrRelationData, node);
	SIZE(RelationData);
	OFFSET(RelationData, rd_smgr);
	OFFSET(RelationData, rd_rel);
	SIZE(BufferDesc);
	SIZE(BufferUsage);
	SIZE(PGPROC);
	SIZE(XLogReaderState);
	SIZE(DecodedXLogRecord);
	SIZE(XLogRecData);
	SIZE(EndOfWalRecoveryInfo);
	SIZE(ControlFileData);
	SIZE(CheckPoint);
	SIZE(RmgrData);
	appendStringInfo(&out, "REGBUF %d %d %d\n", REGBUF_FORCE_IMAGE, REGBUF_WILL_INIT, REGBUF_NO_CHANGE);
	PG_RETURN_TEXT_P(cstring_to_text(out.data));
}

/*
 * Counts the rows of a table without dead ones, by a scan and by looking at each block up to the storage manager's
 * idea of the size: macros and inline functions of the headers work on the server's structs here.
 */
Datum
abi_walk(PG_FUNCTION_ARGS)
{
	Relation	rel = table_open(PG_GETARG_OID(0), AccessShareLock);
	BlockNumber nblocks = smgrnblocks(RelationGetSmgr(rel), MAIN_FORKNUM);
	TableScanDesc scan;
	int64		rows = 0;
	int64		pointers = 0;

	for (BlockNumber block = 0; block < nblocks; block++)
	{
		Buffer		buffer = ReadBuffer(rel, block);

		LockBuffer(buffer, BUFFER_LOCK_SHARE);
		if (!PageIsNew(BufferGetPage(buffer)))
			pointers += PageGetMaxOffsetNumber(BufferGetPage(buffer));
		UnlockReleaseBuffer(buffer);
		CHECK_FOR_INTERRUPTS();
	}
	scan = table_beginscan(rel, GetActiveSnapshot(), 0, NULL);
	while (heap_getnext(scan, ForwardScanDirection) != NULL)
		rows++;
	table_endscan(scan);
	table_close(rel, AccessShareLock);
	if (rows != pointers)
		elog(ERROR, "%lld rows, but %lld line pointers", (long long) rows, (long long) pointers);
	PG_RETURN_INT64(rows);
}
