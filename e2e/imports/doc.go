// Package imports holds the rules of who may import whom. They are its test.
package imports
