// Package netns makes networks that tests can cut: network namespaces with cables between them, on Linux.
//
// A test that needs one calls Inside, and its TestMain calls Check.
package netns
