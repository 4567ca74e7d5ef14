// <linux/virtio_net.h>, which has a member called `class`.
#pragma once

#define class class_
#include <linux/virtio_net.h>
#undef class
