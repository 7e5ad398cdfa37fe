// Package qcow2 reads the headers of qcow2 images.
//
// Images are hostile input: guests and other tenants write them. ReadHeader
// validates every number before anything is allocated by it, and never reads
// more than the image's first cluster and its backing name.
//
// # What a caller may rely on
//
// A header that is wrong in one place is still told in all others: together
// with an error of one of the groups in errors.go comes what could be read.
// That holds above all for the backing name, because a file whose parent is
// unknown might be the child of any image.
//
// # Sources
//
// "Specification" means QEMU's docs/interop/qcow2.rst; the limits that it calls
// implementation limits are those of qcow2_do_open in block/qcow2.c.
package qcow2
