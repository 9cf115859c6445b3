# Who may do what: walhouse itself, whoever starts it, and whoever provisions or looks after the queues.

locals {
  live_arns  = [for queue in aws_sqs_queue.live : queue.arn]
  dead_arns  = [for queue in aws_sqs_queue.dead : queue.arn]
  every_arn  = concat(local.live_arns, local.dead_arns)
  account_id = data.aws_caller_identity.current.account_id
  partition  = data.aws_partition.current.partition
  region     = data.aws_region.current.region
}

data "aws_iam_policy_document" "tasks" {
  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "Service"
      identifiers = ["ecs-tasks.amazonaws.com"]
    }

    condition {
      test     = "StringEquals"
      variable = "aws:SourceAccount"
      values   = [local.account_id]
    }

    condition {
      test     = "ArnLike"
      variable = "aws:SourceArn"
      values   = ["arn:${local.partition}:ecs:${local.region}:${local.account_id}:*"]
    }
  }
}

# The task's role: what walhouse run calls. A batch is allowed by the name of the single action.

resource "aws_iam_role" "task" {
  name               = "${var.name}-task"
  assume_role_policy = data.aws_iam_policy_document.tasks.json
}

data "aws_iam_policy_document" "task" {
  # Events go to their queues, and what is none to the dead letters. The metrics tell how many are in each, and walhouse check
  # what they are like.
  statement {
    sid       = "Send"
    actions   = ["sqs:GetQueueUrl", "sqs:GetQueueAttributes", "sqs:SendMessage"]
    resources = local.every_arn
  }

  # The workers take from the queues, never from the dead letters.
  statement {
    sid       = "Handle"
    actions   = ["sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:ChangeMessageVisibility"]
    resources = local.live_arns
  }

  dynamic "statement" {
    for_each = var.reports == null ? [] : [var.reports]

    content {
      sid = "Objects"
      # Reports, and payloads that are too large for SQS. A large one comes in parts, and one that is given up leaves none.
      actions   = ["s3:PutObject", "s3:GetObject", "s3:AbortMultipartUpload"]
      resources = ["arn:${local.partition}:s3:::${statement.value.bucket}/${statement.value.prefix}/*"]
    }
  }

  dynamic "statement" {
    for_each = var.reports == null ? [] : [var.reports]

    content {
      sid = "ObjectsThatAreGone"
      # Without it S3 says of an object that is not there that it may not be read. A condition on the prefix would take that
      # away again: who asks for an object names none.
      actions   = ["s3:ListBucket"]
      resources = ["arn:${local.partition}:s3:::${statement.value.bucket}"]
    }
  }
}

resource "aws_iam_role_policy" "task" {
  name   = "queues"
  role   = aws_iam_role.task.id
  policy = data.aws_iam_policy_document.task.json
}

# The execution role: what ECS does before walhouse starts, and the logs.

resource "aws_iam_role" "execution" {
  name               = "${var.name}-execution"
  assume_role_policy = data.aws_iam_policy_document.tasks.json
}

locals {
  # arn:partition:secretsmanager:region:account:secret:name, and perhaps :key:stage:version behind it.
  secret_arns = distinct([for arn in values(var.secrets) : join(":", slice(split(":", arn), 0, 7))])
}

data "aws_iam_policy_document" "execution" {
  statement {
    sid       = "Logs"
    actions   = ["logs:CreateLogStream", "logs:PutLogEvents"]
    resources = ["${aws_cloudwatch_log_group.walhouse.arn}:*"]
  }

  dynamic "statement" {
    for_each = length(local.secret_arns) == 0 ? [] : [local.secret_arns]

    content {
      sid       = "Secrets"
      actions   = ["secretsmanager:GetSecretValue"]
      resources = statement.value
    }
  }

  dynamic "statement" {
    for_each = var.secrets_kms_key_arn == null ? [] : [var.secrets_kms_key_arn]

    content {
      sid       = "SecretsKey"
      actions   = ["kms:Decrypt"]
      resources = [statement.value]
    }
  }

  dynamic "statement" {
    for_each = var.ecr_repository_arn == null ? [] : [var.ecr_repository_arn]

    content {
      sid       = "Image"
      actions   = ["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"]
      resources = [statement.value]
    }
  }

  dynamic "statement" {
    for_each = var.ecr_repository_arn == null ? [] : [var.ecr_repository_arn]

    content {
      sid = "ImageLogin"
      # It knows no resources.
      actions   = ["ecr:GetAuthorizationToken"]
      resources = ["*"]
    }
  }
}

resource "aws_iam_role_policy" "execution" {
  name   = "start"
  role   = aws_iam_role.execution.id
  policy = data.aws_iam_policy_document.execution.json
}

# For people, attached to nobody here.

# walhouse provision. With these files there is nothing for it to create; it then tells whether anything differs.
data "aws_iam_policy_document" "provision" {
  statement {
    actions   = ["sqs:GetQueueUrl", "sqs:GetQueueAttributes", "sqs:CreateQueue", "sqs:SetQueueAttributes"]
    resources = local.every_arn
  }
}

resource "aws_iam_policy" "provision" {
  name        = "${var.name}-provision"
  description = "What walhouse provision does to the queues"
  policy      = data.aws_iam_policy_document.provision.json
}

# walhouse dlq: letters are taken from the dead letters, sent to their queue, and deleted; large payloads are shown.
data "aws_iam_policy_document" "dead_letters" {
  statement {
    sid = "Letters"
    actions = [
      "sqs:GetQueueUrl",
      "sqs:GetQueueAttributes",
      "sqs:ReceiveMessage",
      "sqs:DeleteMessage",
      "sqs:ChangeMessageVisibility",
    ]
    resources = local.dead_arns
  }

  statement {
    sid       = "Redrive"
    actions   = ["sqs:GetQueueUrl", "sqs:SendMessage"]
    resources = local.live_arns
  }

  dynamic "statement" {
    for_each = var.reports == null ? [] : [var.reports]

    content {
      sid       = "Payloads"
      actions   = ["s3:GetObject"]
      resources = ["arn:${local.partition}:s3:::${statement.value.bucket}/${statement.value.prefix}/payloads/*"]
    }
  }
}

resource "aws_iam_policy" "dead_letters" {
  name        = "${var.name}-dead-letters"
  description = "What walhouse dlq does"
  policy      = data.aws_iam_policy_document.dead_letters.json
}
