// Package store keeps what chainfs knows about one tree on local disk: image
// records, operations, history. It implements chain.Index and chain.Journal
// with Badger.
//
// # Disk layout
//
// A directory of mode 0700 that Badger owns. Integers in keys are big-endian, so
// that keys sort by them; values are JSON unless said otherwise.
//
//	m/schema                    the layout's version, a decimal number
//	m/tree                      id of the tree the store belongs to, as text
//	m/mountpoint                where the tree was last mounted, as text
//	m/next-image, m/next-op     the first id not leased, a decimal number
//	i/<id, 8 bytes>             imageRecord
//	o/<id, 8 bytes>             operationRecord: the operation without its plan
//	p/<id, 8><sum, 8><part, 4>  a piece of the plan's JSON, at most 64 KiB; sum
//	                            starts the SHA-256 of the whole
//	x/<part, 4 bytes>           marks of files that are no image: 16 bytes each,
//	                            at most 64 KiB
//
// # Guarantees
//
// A call that returned nil is durable: every transaction is synced. Changes that
// fit one transaction (some 3,000 images) are atomic. Larger ones are not; their
// order then keeps what matters: an operation's own record comes last, and it
// never names a plan that is not there in full.
//
// The tree is the truth. A store that is lost or damaged is deleted and rebuilt
// by a scan; only the history is lost with it.
//
// # Space
//
// No value is larger than Badger's threshold for its value log, so all values
// are in the tables and compaction alone frees what was deleted: the value log
// stays empty and needs no garbage collection. Badger writes through memory
// maps of sparse files, where a full disk is a SIGBUS; so free space is checked
// before opening and before each write.
package store
